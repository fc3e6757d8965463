"""Rendered files of random templates, while their secrets rotate and programs read: never torn, never mixed."""

import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.files import file as declare
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.secrets_file import SecretsFile
from tests.support.waiting import wait_until

pytestmark = pytest.mark.mount

SECRETS, KEYS = ("a", "b", "c"), ("k", "l")
MARK = "kanarie-7f3a9e"  # as `tests.support.canary` has it: a log with one fails the test

_VALUE = re.compile(rf"<{MARK}-(\w) (\d+) (x*)>")


def versions(numbers: dict[str, int]) -> dict[str, dict[str, str]]:
    """Return secrets whose values say of which version they are. Their lengths differ from version to version."""
    return {
        name: dict.fromkeys(KEYS, f"<{MARK}-{name} {number} {'x' * (number * 7 % 50)}>")
        for name, number in numbers.items()
    }


PIECES = st.one_of(
    st.builds("{{{{ secret('file', '{}').{} }}}}".format, st.sampled_from(SECRETS), st.sampled_from(KEYS)),
    st.builds(
        "{{% for k, v in secret('file', '{}').items() %}}{{{{ v }}}}{{% endfor %}}".format, st.sampled_from(SECRETS)
    ),
    st.just("{% for n, s in secrets('file').items() %}{{ s.k }}{{ s.l }}{% endfor %}"),
    st.builds("{{% if {} %}}{{{{ secret('file', 'a').k }}}}{{% endif %}}".format, st.booleans()),
    st.text("abc-=:\n", max_size=20),
)
TEMPLATES = st.lists(PIECES, min_size=1, max_size=12).map("".join)
ROTATIONS = st.lists(st.sets(st.sampled_from(SECRETS), min_size=1), min_size=1, max_size=4)


@dataclass
class Reader:
    """Reads a file again and again in a thread, and checks all that it sees."""

    path: Path
    wrong: list[str] = field(default_factory=list)
    seen: dict[int, tuple[bytes, float]] = field(default_factory=dict)
    """Content and time by inode."""
    order: list[tuple[int, float]] = field(default_factory=list)
    """Inode and time of what was opened, when it was another than before. Two inodes may have the same content: what a
    reader finds before it is published is published as yet another one, or watchers would hear of nothing."""

    def look(self) -> None:
        with self.path.open("rb", buffering=0) as opened:
            first = os.fstat(opened.fileno())
            data = opened.read(7) + opened.read()
            last = os.fstat(opened.fileno())
        if (first.st_ino, first.st_mtime, first.st_size) != (last.st_ino, last.st_mtime, len(data)):
            self.wrong.append("what was open has changed, or has another size")
        self._check_versions(data.decode())
        if self.seen.setdefault(first.st_ino, (data, first.st_mtime)) != (data, first.st_mtime):
            self.wrong.append("an inode has another content or time than before")
        if not self.order or self.order[-1][0] != first.st_ino:
            self.order.append((first.st_ino, first.st_mtime))

    def _check_versions(self, text: str) -> None:
        found: dict[str, set[str]] = {}
        for name, number, filling in _VALUE.findall(text):
            found.setdefault(name, set()).add(number)
            if len(filling) != int(number) * 7 % 50:
                self.wrong.append("a value is torn")
        if len(_VALUE.findall(text)) != text.count(MARK):
            self.wrong.append("a value is torn")
        self.wrong += [f"two versions of {name}: {numbers}" for name, numbers in found.items() if len(numbers) > 1]

    def check(self) -> None:
        assert self.wrong == []
        times = [time for _, time in self.order]
        assert times == sorted(times), "a later file has an earlier time"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mounted, Path, SecretsFile]]:
    directory = tmp_path_factory.mktemp("property")
    secrets = SecretsFile(directory / "secrets.json")
    secrets.write(versions(dict.fromkeys(SECRETS, 0)))
    components = component(
        directory / "components", "file", "local.file", {"secretsFile": secrets.path, "multiValued": "true"},
        annotations={"secretfs/ttl": "100ms"},
    ).parent  # fmt: skip
    declare(components, "f", "files/f", "x")
    with mounted(components) as mount:
        yield mount, components, secrets


_numbers = iter(range(1, 10**6))


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(template=TEMPLATES, rotations=ROTATIONS)
def test_random_templates_and_rotations(
    place: tuple[Mounted, Path, SecretsFile], template: str, rotations: list[set[str]]
) -> None:
    """file-3: A file is made of one version of each secret, and no reader sees parts of two renderings in it."""
    mount, components, secrets = place
    number = next(_numbers)
    declare(components, "f", f"files/f{number}", template)
    (mount.path / ".secretfs/reload").write_text("now\n")
    numbers = dict.fromkeys(SECRETS, next(_numbers))
    secrets.write(versions(numbers))
    path = mount.path / f"files/f{number}"
    readers = [Reader(path), Reader(path)]
    over = threading.Event()

    def read_on(reader: Reader) -> None:
        while not over.is_set():
            try:
                reader.look()
            except OSError as error:
                reader.wrong.append(f"a read failed: {error.strerror}")

    threads = [threading.Thread(target=read_on, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    try:
        for rotated in rotations:
            numbers = {name: next(_numbers) if name in rotated else before for name, before in numbers.items()}
            secrets.write(versions(numbers))
            newest = {f"<{MARK}-{name} {now} " for name, now in numbers.items()}

            def is_current(newest: set[str] = newest) -> bool:
                shown = path.read_text()
                return shown.count(MARK) == sum(shown.count(value) for value in newest)

            wait_until(is_current)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    for reader in readers:
        reader.check()
