// A pluggable secret store in JavaScript. It does what plug_in.py does; see there.
//
//     node plug_in.js SOCKET DIRECTORY
"use strict";
const fs = require("fs");
const path = require("path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const { ReflectionService } = require("@grpc/reflection");

const [socket, directory] = process.argv.slice(2).map((argument) => path.resolve(argument));
const definition = loader.loadSync(path.join(__dirname, "secretstore.proto"), { keepCase: true });
const { SecretStore } = grpc.loadPackageDefinition(definition).dapr.proto.components.v1;
const sets = new Map(); // what each component is served

const state = () => JSON.parse(fs.readFileSync(path.join(directory, "state.json"), "utf-8"));
const instance = (call) => String(call.metadata.get("x-component-instance")[0]);

function note(method, call, more = {}) {
  const line = JSON.stringify({ method, instance: instance(call), ...more });
  fs.appendFileSync(path.join(directory, "calls.jsonl"), `${line}\n`);
}

function served(call, answer, use) {
  const set = sets.get(instance(call));
  if (set === undefined) answer({ code: grpc.status.FAILED_PRECONDITION, details: "not initialised" });
  else use(state()[set]);
}

const methods = {
  Init(call, answer) {
    const properties = call.request.metadata?.properties ?? {};
    note("Init", call, { properties });
    sets.set(instance(call), properties.set ?? "secrets");
    answer(null, {});
  },
  Features(call, answer) {
    note("Features", call);
    answer(null, { features: state().features });
  },
  Get(call, answer) {
    const { key } = call.request;
    note("Get", call, { key });
    if (state().denied.includes(key)) {
      answer({ code: grpc.status.PERMISSION_DENIED, details: JSON.stringify(state()) });
      return;
    }
    if (state().broken.includes(key)) {
      answer(new Error(JSON.stringify(state())));
      return;
    }
    served(call, answer, (secrets) => {
      if (Object.hasOwn(secrets, key)) answer(null, { data: secrets[key] });
      else answer({ code: grpc.status.NOT_FOUND, details: "no such secret" });
    });
  },
  BulkGet(call, answer) {
    note("BulkGet", call);
    served(call, answer, (secrets) => {
      const data = Object.entries(secrets).map(([name, values]) => [name, { secrets: values }]);
      answer(null, { data: Object.fromEntries(data) });
    });
  },
  Ping(call, answer) {
    note("Ping", call);
    answer(null, {});
  },
};

fs.rmSync(socket, { force: true });
const server = new grpc.Server();
server.addService(SecretStore.service, methods);
new ReflectionService(definition).addToServer(server);
server.bindAsync(`unix:${socket}`, grpc.ServerCredentials.createInsecure(), (error) => {
  if (error) throw error;
  console.log("ready");
});
