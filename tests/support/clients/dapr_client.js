// Reads secrets with Dapr's client: the names on standard input, {store: [name]}, what came of them on standard output,
// [by HTTP, by gRPC], each {store: {name: {key: value}}}. By gRPC the client gives the first key only of a single
// secret, so there it reads whole stores.
const { DaprClient, CommunicationProtocolEnum } = require("@dapr/dapr");

async function byHTTP(names) {
  const client = new DaprClient({ communicationProtocol: CommunicationProtocolEnum.HTTP });
  const found = {};
  for (const [store, wanted] of Object.entries(names)) {
    found[store] = {};
    for (const name of wanted) {
      found[store][name] = await client.secret.get(store, encodeURIComponent(name));
    }
  }
  await client.stop();
  return found;
}

async function byGRPC(names) {
  const client = new DaprClient({ communicationProtocol: CommunicationProtocolEnum.GRPC });
  const found = {};
  for (const store of Object.keys(names)) {
    found[store] = await client.secret.getBulk(store);
  }
  await client.stop();
  return found;
}

async function main() {
  const names = JSON.parse(require("fs").readFileSync(0, "utf-8"));
  console.log(JSON.stringify([await byHTTP(names), await byGRPC(names)]));
}

main();
