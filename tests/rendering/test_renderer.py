"""Rendering in a process of its own: what it makes, and that nothing a template does holds up anybody else."""

import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import trio
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12
from trustme import CA

from secretfs.errors import RenderingFailed, SecretNotFound
from secretfs.rendering.check import check_templates
from secretfs.rendering.conversation import Asked
from secretfs.rendering.job import CPU_SECONDS, LARGEST_FILE, Format, Job, Mode, Reference, Template
from secretfs.rendering.renderer import Renderer
from tests.conftest import ExpectLog
from tests.support.canary import leaked, secret
from tests.support.waiting import PATIENCE

PASSWORD = secret("p'w")
AUTHORITY = CA()
CERTIFICATE = AUTHORITY.issue_cert("db.test")
OTHER = AUTHORITY.issue_cert("other.test")
SECRETS: Mapping[str, Mapping[str, bytes]] = {
    "db": {"username": b"joe", "password": PASSWORD.encode()},
    "token": {"token": b"t1"},
    "raw": {"raw": b"\xff\x00"},
    "tls": {
        "crt": b"".join(part.bytes() for part in CERTIFICATE.cert_chain_pems),
        "key": CERTIFICATE.private_key_pem.bytes(),
        "other": OTHER.private_key_pem.bytes(),
        "ca": AUTHORITY.cert_pem.bytes(),
    },
}


async def ask_secret(store: str, name: str) -> Mapping[str, bytes]:
    if name not in SECRETS:
        raise SecretNotFound(name)
    return SECRETS[name]


async def ask_folder(store: str, folder: str) -> list[str]:
    return ["team/db", "team/token"]


ASKED = Asked(ask_secret, ask_folder)


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    made = Renderer()
    yield made
    made.close()


def text(source: str) -> Job:
    return Job(Format.TEXT, Template(source))


def of(form: Format, **values: Reference | Template) -> Job:
    return Job(form, values=tuple(values.items()))


USER, WORD = Reference("vault", "db", "username"), Reference("vault", "db", "password")


async def test_a_template(renderer: Renderer) -> None:
    source = "{% set db = secret('vault', 'db') %}db:{{ db.username }}:{{ db.password }}:{{ secret('env', 'token') }}\n"
    assert await renderer.render(text(source), ASKED) == f"db:joe:{PASSWORD}:t1\n".encode()


async def test_each_secret_is_asked_for_once(renderer: Renderer) -> None:
    asked: list[str] = []

    async def ask(store: str, name: str) -> Mapping[str, bytes]:
        asked.append(name)
        return {"n": str(len(asked)).encode(), "m": b""}

    source = "{% for i in range(5) %}{{ secret('vault', 'a').n }}{{ secret('vault', 'b').n }}{% endfor %}"
    assert await renderer.render(text(source), Asked(ask, ask_folder)) == b"12" * 5
    assert asked == ["a", "b"]


async def test_a_folder(renderer: Renderer) -> None:
    async def ask(store: str, name: str) -> Mapping[str, bytes]:
        return {"v": name.encode(), "w": b""}

    source = "{% for name, one in secrets('vault', 'team').items() %}{{ name }}={{ one.v }};{% endfor %}"
    assert await renderer.render(text(source), Asked(ask, ask_folder)) == b"db=team/db;token=team/token;"


async def test_formats_of_text(renderer: Renderer) -> None:
    values: dict[str, Reference | Template] = {
        "user": USER, "pass word": WORD, "url": Template("x://{{ secret('vault', 'db').username }}"),
    }  # fmt: skip
    plain = {"user": "joe", "pass word": PASSWORD, "url": "x://joe"}
    assert json.loads(await renderer.render(of(Format.JSON, **values), ASKED)) == plain
    assert yaml.safe_load(await renderer.render(of(Format.YAML, **values), ASKED)) == plain
    assert await renderer.render(of(Format.PROPERTIES, **values), ASKED) == (
        f"user=joe\npass\\ word={PASSWORD}\nurl=x://joe\n".encode()
    )
    quoted = PASSWORD.replace("'", "'\\''")
    assert await renderer.render(of(Format.DOTENV, **values), ASKED) == (
        f"user='joe'\npass_word='{quoted}'\nurl='x://joe'\n".encode()
    )
    raw = of(Format.YAML, raw=Reference("v", "raw"))
    assert yaml.safe_load(await renderer.render(raw, ASKED)) == {"raw": b"\xff\x00"}
    with pytest.raises(RenderingFailed, match="format json: the value of raw is not UTF-8 text"):
        await renderer.render(of(Format.JSON, raw=Reference("v", "raw")), ASKED)


async def test_a_login_to_a_registry(renderer: Renderer) -> None:
    made = await renderer.render(
        of(Format.DOCKER, server=Template("registry.test"), username=USER, password=WORD), ASKED
    )
    entry = json.loads(made)["auths"]["registry.test"]
    assert (entry["username"], entry["password"]) == ("joe", PASSWORD)


CRT, KEY, CA_PEM = (Reference("v", "tls", key) for key in ("crt", "key", "ca"))


async def test_a_pem_bundle(renderer: Renderer) -> None:
    made = await renderer.render(of(Format.PEM, certificate=CRT, key=KEY), ASKED)
    assert made == SECRETS["tls"]["crt"] + SECRETS["tls"]["key"]
    with pytest.raises(RenderingFailed, match="format pem: the key does not belong to the certificate"):
        await renderer.render(of(Format.PEM, certificate=CRT, key=Reference("v", "tls", "other")), ASKED)


async def test_a_pkcs12_file(renderer: Renderer) -> None:
    made = await renderer.render(
        of(Format.PKCS12, certificate=CRT, key=KEY, chain=CA_PEM, name=Template("db"), password=WORD), ASKED
    )
    found = pkcs12.load_pkcs12(made, PASSWORD.encode())
    assert found.cert is not None
    assert found.cert.friendly_name == b"db"
    assert found.cert.certificate == x509.load_pem_x509_certificates(SECRETS["tls"]["crt"])[0]
    assert found.additional_certs[-1].certificate == x509.load_pem_x509_certificate(SECRETS["tls"]["ca"])


async def test_what_a_file_needs_is_found_out_without_asking(renderer: Renderer) -> None:
    async def refuse(store: str, name: str) -> Mapping[str, bytes]:
        raise AssertionError(name)

    loop = "{% for n, s in secrets('v', 'f').items() %}{{ s.k }}{% endfor %}"
    source = "{{ secret('v', 'db').username | url }}{{ secret('e', 't') }}" + loop
    found = await renderer.render(text(source), Asked(refuse, ask_folder), Mode.NEEDS)
    assert json.loads(found) == [["v", "db", "username"], ["e", "t"], ["v", "f/*", "k"]]
    found = await renderer.render(of(Format.PKCS12, certificate=CRT, key=KEY), Asked(refuse, ask_folder), Mode.NEEDS)
    assert json.loads(found) == [["v", "tls", "crt"], ["v", "tls", "key"]]


async def test_a_masked_file_has_no_value_in_any_form(renderer: Renderer) -> None:
    source = (
        "{{ secret('v', 'db').password }} {{ secret('v', 'db').password | b64encode }} {{ secret('v', 'db').username }}"
    )
    made = (await renderer.render(text(source), ASKED, Mode.MASKED)).decode()
    assert made == "******** KioqKioqKio= ********"
    made = (await renderer.render(of(Format.PEM, certificate=CRT, key=KEY), ASKED, Mode.MASKED)).decode()
    assert made == "certificate: ********\nkey: ********\n"


async def test_what_asking_raises_ends_the_rendering(renderer: Renderer) -> None:
    with pytest.raises(SecretNotFound):
        await renderer.render(text("{{ secret('v', 'gone') }}"), ASKED)
    assert await renderer.render(text("ok"), ASKED) == b"ok"


HOSTILE = {
    "an endless loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a large number": "{{ (10 ** 99) ** (10 ** 9) }}",
    "a large text": "{{ 'x' * 10 ** 9 }}",
    "much text": "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "a large range": "{{ range(10 ** 9) | list }}",
    "deep recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "an attribute": "{{ ''.__class__.__base__.__subclasses__() }}",
    "a file too large": f"{{{{ 'x' * {LARGEST_FILE + 1} }}}}",
    "many secrets": "{% for a in range(5000) %}{{ secret('v', 'db' ~ '') }}{{ secret('v' ~ a, 'token') }}{% endfor %}",
    "formatting": "{{ 'x'.ljust(10 ** 12) }}",
    "a slow join": "{{ (['x' * 999] * 99999) | join }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
async def test_hostile_templates_are_ended(renderer: Renderer, source: str) -> None:
    with pytest.raises(RenderingFailed) as caught:
        await renderer.render(text(source), ASKED)
    assert not leaked(str(caught.value))
    assert await renderer.render(text("{{ secret('v', 'token') }}"), ASKED) == b"t1"


async def test_the_daemon_goes_on_while_a_template_runs_for_ever(renderer: Renderer) -> None:
    ended = trio.Event()

    async def run_for_ever() -> None:
        with pytest.raises(RenderingFailed, match=f"more than {CPU_SECONDS} s of processor time"):
            await renderer.render(text(HOSTILE["an endless loop"]), ASKED)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_for_ever)
        while not renderer.pid:  # noqa: ASYNC110 - nothing tells when
            await trio.sleep(0.001)
        assert await renderer.render(text("{{ secret('v', 'token') }}"), ASKED) == b"t1"
        assert not ended.is_set() or renderer.pid  # the other one was not waited for


async def test_a_reader_that_goes_away_ends_the_process(renderer: Renderer) -> None:
    await renderer.render(text("warm"), ASKED)
    with trio.move_on_after(0.2):
        await renderer.render(text(HOSTILE["an endless loop"]), ASKED)
    with trio.fail_after(PATIENCE):
        while _children(renderer.pid):  # noqa: ASYNC110 - nothing tells when
            await trio.sleep(0.01)


async def test_a_process_that_was_killed_is_replaced(renderer: Renderer, expect_log: ExpectLog) -> None:
    expect_log("the process that renders files has ended")
    await renderer.render(text("1"), ASKED)
    before = renderer.pid
    process = os.pidfd_open(before)
    signal.pidfd_send_signal(process, signal.SIGKILL)
    await trio.lowlevel.wait_readable(process)
    os.close(process)
    assert await renderer.render(text("2"), ASKED) == b"2"
    assert renderer.pid != before


async def test_the_process_has_no_descriptor_but_its_sockets_and_no_environment(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("A_SECRET", secret())
    monkeypatch.chdir(tmp_path)
    inside: dict[str, object] = {}

    async def look(store: str, name: str) -> Mapping[str, bytes]:
        (pid,) = _children(renderer.pid)
        own = Path(f"/proc/{pid}")
        inside["files"] = {str(file.readlink()).partition(":")[0] for file in (own / "fd").iterdir()}
        inside["limits"] = (own / "limits").read_text()
        inside["directory"] = str((own / "cwd").readlink())
        inside["environment"] = (own / "environ").read_bytes()
        return {"token": b"t"}

    await renderer.render(text("{{ secret('v', 'token') }}"), Asked(look, ask_folder))
    assert inside["files"] <= {"socket", "/dev/null"}  # type: ignore[operator]
    assert inside["directory"] == "/"
    assert secret().encode() not in inside["environment"]  # type: ignore[operator]
    limits = {line[:26].strip(): line[26:].split() for line in str(inside["limits"]).splitlines()}
    assert limits["Max open files"][:2] == ["0", "0"]
    assert limits["Max core file size"][:2] == ["0", "0"]
    assert int(limits["Max address space"][0]) < 2 << 30


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_process_that_cannot_check_is_no_fault_of_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secretfs.rendering.check.PROGRAM", ["false"])
    with pytest.raises(OSError, match="the process that checks templates does not begin"):
        check_templates(["x"])


def test_checking_templates_ends_as_well() -> None:
    good, hostile, wrong, last = check_templates(
        ["{{ secret('a', 'b') }}", "{{ (10 ** 99) ** (10 ** 9) }}", "{{ ", "{{ secret(x, 'b') }}"]
    )
    assert (good.stores, good.fault) == (("a",), None)
    assert hostile.fault is not None
    assert "it takes more than" in hostile.fault.message
    assert wrong.fault is not None
    assert wrong.fault.line == 1
    assert last.asks_others
