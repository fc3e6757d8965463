"""Do a job: from a template or values, and secrets on request, to the bytes of a file. Runs in the helper process."""

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from secretfs.quoting import property_key, property_value, shell_name, shell_word, yaml_key, yaml_string
from secretfs.rendering import values as values_of
from secretfs.rendering.job import LARGEST_FILE, Fault, Format, Job, Mode, Reference, Template
from secretfs.rendering.language import TemplateFault, environment, render
from secretfs.rendering.values import Binary, NotText, Placeholder, SecretMap, data

AskSecret = Callable[[str, str], Mapping[str, bytes]]
AskFolder = Callable[[str, str], list[str]]


class Evaluation:
    """Does one job. Each secret is asked for once, so all of the file is made of one version of it."""

    def __init__(self, job: Job, mode: Mode, ask_secret: AskSecret, ask_folder: AskFolder) -> None:
        self._job = job
        self._mode = mode
        self._ask_secret = ask_secret
        self._ask_folder = ask_folder
        self._secrets: dict[tuple[str, str], Any] = {}
        self._folders: dict[tuple[str, str], list[str]] = {}
        self.needs: dict[tuple[str, ...], None] = {}
        """What is needed, in mode `Mode.NEEDS`: store and secret, with a key where one is named."""
        self._names = {"secret": self._secret, "secrets": self._all_in}
        self._environment = environment()

    def run(self) -> bytes:
        """Return the file. Raises `TemplateFault`, and whatever asking for secrets raises."""
        job = self._job
        if job.template is not None:
            outcome = render(self._environment, job.template.text, self._names).encode("utf-8", "surrogatepass")
        else:
            found = {name: self._value(name, value) for name, value in job.values}
            plain = self._mode is not Mode.RENDER and job.takes_cryptography
            try:
                outcome = _listed(found) if plain else _FORMATS[job.format](found)
            except NotText as error:
                raise TemplateFault(Fault(str(error), field=f"format {job.format.value}")) from None
        if len(outcome) > LARGEST_FILE:
            raise TemplateFault(Fault(f"the file is larger than {LARGEST_FILE >> 20} MiB"))
        return outcome

    def _value(self, name: str, value: Reference | Template) -> object:
        field = f"spec.values.{name}"
        if isinstance(value, Template):
            return render(self._environment, value.text, self._names, f"{field}.template")
        secret = self._secret(value.store, value.secret)
        if isinstance(secret, Placeholder):
            return secret.key(value.key) if value.key else secret
        if isinstance(secret, SecretMap):
            if value.key in secret:
                return secret[value.key]
            missing = f"there is no key {value.key}" if value.key else "it has to say which key"
            raise TemplateFault(Fault(missing, field=field))
        if value.key in ("", value.secret):
            return secret
        raise TemplateFault(Fault(f"there is no key {value.key}: the secret is a single value", field=field))

    def _secret(self, store: str, name: str) -> Any:
        """Return a secret: ``secret(STORE, NAME)`` in a template."""
        place = (str(store), str(name))
        if self._mode is Mode.NEEDS:
            return Placeholder(place, self.needs)
        if place not in self._secrets:
            given = dict(self._ask_secret(*place))
            make = values_of.masked if self._mode is Mode.MASKED else values_of.shown
            self._secrets[place] = make(given, place[1])
        return self._secrets[place]

    def _all_in(self, store: str, folder: str = "") -> dict[str, Any]:
        """Return the secrets in a folder, by the last part of their names: ``secrets(STORE, FOLDER)`` in a template."""
        place = (str(store), str(folder).strip("/"))
        if self._mode is Mode.NEEDS:
            return {"*": Placeholder((place[0], f"{place[1]}/*".lstrip("/")), self.needs)}
        if place not in self._folders:
            self._folders[place] = list(self._ask_folder(*place))
        start = len(place[1]) + 1 if place[1] else 0
        return {name[start:]: self._secret(place[0], name) for name in self._folders[place]}


def _text(name: str, value: object) -> str:
    if isinstance(value, Binary):
        raise NotText(f"the value of {name} is not UTF-8 text")
    return str(value)


def _json(found: Mapping[str, object]) -> bytes:
    plain = {name: _text(name, value) for name, value in found.items()}
    return json.dumps(plain, indent=2, ensure_ascii=False).encode() + b"\n"


def _yaml(found: Mapping[str, object]) -> bytes:
    return "".join(f"{yaml_key(name)} {_yaml_value(value)}\n" for name, value in found.items()).encode()


def _yaml_value(value: object) -> str:
    if isinstance(value, Binary):
        return f'!!binary "{base64.b64encode(value.data).decode()}"'
    return yaml_string(str(value))


def _dotenv(found: Mapping[str, object]) -> bytes:
    """Return assignments. No two names are of one variable: `secretfs.dapr.rendered_file` has seen to that."""
    lines: list[bytes] = []
    for name, value in found.items():
        if b"\0" in data(value):
            raise NotText(f"the value of {name} holds a NUL byte, which no shell variable can")
        lines.append(b"%s=%s\n" % (shell_name(name).encode(), shell_word(data(value))))
    return b"".join(lines)


def _properties(found: Mapping[str, object]) -> bytes:
    return "".join(
        f"{property_key(name)}={property_value(_text(name, value))}\n" for name, value in found.items()
    ).encode()


def _docker(found: Mapping[str, object]) -> bytes:
    """Return the login to one registry, as secrets of type kubernetes.io/dockerconfigjson hold it."""
    server, user, password = (_text(name, found[name]) for name in ("server", "username", "password"))
    entry = {"username": user, "password": password, "auth": base64.b64encode(f"{user}:{password}".encode()).decode()}
    if "email" in found:
        entry["email"] = _text("email", found["email"])
    return json.dumps({"auths": {server: entry}}, ensure_ascii=False).encode()


def _pem(found: Mapping[str, object]) -> bytes:
    from secretfs.rendering.certificates import pem_bundle  # noqa: PLC0415 - cryptography, which few files take

    return pem_bundle({name: data(value) for name, value in found.items()})


def _pkcs12(found: Mapping[str, object]) -> bytes:
    from secretfs.rendering.certificates import pkcs12  # noqa: PLC0415 - see above

    return pkcs12({name: data(value) for name, value in found.items()})


def _listed(found: Mapping[str, object]) -> bytes:
    """Return what stands for a file that cannot be made of placeholders."""
    return "".join(f"{name}: {value}\n" for name, value in found.items()).encode()


_FORMATS: Final[Mapping[Format, Callable[[Mapping[str, object]], bytes]]] = {
    Format.JSON: _json,
    Format.YAML: _yaml,
    Format.DOTENV: _dotenv,
    Format.PROPERTIES: _properties,
    Format.DOCKER: _docker,
    Format.PEM: _pem,
    Format.PKCS12: _pkcs12,
}
