"""What apps cost: memory, start-up and the time to add one, for one app, for thirty and for a thousand.

    python -m benchmarks.many_apps

Each app belongs to a user of its own and reads the same values; with ``--secrets N`` each may see values of its own,
which a Configuration for it allows, of N that the store has. Needs root: nobody else can mount for other users.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fixtures import BenchmarkError, Fixtures, Mount
from secretfs.dapr.memo import RACY
from tests.support.manifests import component

COUNTS = (1, 30, 1000)
SIZE = 100
FIRST_USER = 5000


@dataclass(frozen=True)
class Row:
    """What one number of apps costs."""

    apps: int
    start: float
    """Seconds from the start of the command until the mount answers."""
    empty: int
    """Bytes of the worker then."""
    full: int
    """Bytes of the worker when every app has read every value."""
    calls: int
    """Reads of the store."""
    added: float
    """Seconds that ``secretfs apps apply`` takes for one more."""
    back: float
    """Seconds from a kill -9 of the worker until every app has read a value again."""
    wrong: int
    """Of all values of all apps, those that are not as they were after the kill."""

    def show(self, first: "Row") -> str:
        """Return it as a line of the table."""
        return (
            f"{self.apps:6}  {self.start:8.2f} s  {self.empty / 1e6:8.1f} MB  {self.full / 1e6:8.1f} MB"
            f"  {self.full / first.full:5.2f}  {self.calls:6}  {self.added:8.2f} s  {self.back:6.2f} s  {self.wrong:5}"
        )


HEADER = "  apps    start-up      mounted     all read  ratio   reads     add one  all back  wrong"


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.many_apps", description=__doc__)
    parser.add_argument("--values", type=int, default=100, metavar="N", help="values that each app reads")
    parser.add_argument(
        "--secrets", type=int, default=0, metavar="N", help="secrets of the store, if apps see their own"
    )
    parser.add_argument("--apps", type=int, nargs="+", default=COUNTS, metavar="N", help="numbers of apps")
    arguments = parser.parse_args()
    try:
        with Fixtures() as fixtures:
            rows = [_measure(fixtures, count, arguments.values, arguments.secrets) for count in arguments.apps]
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(HEADER)
    for row in rows:
        print(row.show(rows[0]))
    return 0


def _measure(fixtures: Fixtures, count: int, values: int, secrets_in_all: int) -> Row:
    resources, apps = fixtures.directory("resources"), fixtures.directory("apps")
    secrets = fixtures.directory("secrets") / "secrets.json"
    names = [f"service-{number:05}" for number in range(max(values, secrets_in_all))]
    configs = fixtures.directory("configs")
    visible = [_visible(names, number, values) for number in range(count + 1)]
    secrets.write_text(json.dumps({name: f"{name:{SIZE}}" for name in names}), "utf-8")
    component(resources, "file", "local.file", {"secretsFile": secrets}, annotations={"secretfs/ttl": "1h"})
    for number in range(count):
        _declare(apps / f"app-{number}.yaml", number, own=bool(secrets_in_all))
    options = ["--apps", str(apps), "--allow-other"]
    if secrets_in_all:
        for number, seen in enumerate(visible):
            config = configs / f"{number}.yaml"
            config.write_text(_configuration(number, seen), "utf-8")
            options += ["--config", str(config)]
    time.sleep(RACY)  # what was written a moment ago is read again at each reload; on a host it was written long ago
    began = time.perf_counter()
    with fixtures.secretfs(resources, options=options) as mount:
        start, empty = time.perf_counter() - began, mount.rss
        for number in range(count):
            for name in visible[number]:
                (mount.path / f"app-{number}/file" / name).read_bytes()
        full, calls = mount.rss, _calls(mount)
        more = fixtures.directory("more") / "app.yaml"
        _declare(more, count, own=bool(secrets_in_all))
        began = time.perf_counter()
        fixtures.run("-m", "secretfs", "apps", "apply", str(mount.path), str(more))
        added = time.perf_counter() - began
        os.kill(mount.pid, signal.SIGKILL)
        began = time.perf_counter()
        wrong = _wrong(mount, [names[:1] for names in visible[:count]])
        back = time.perf_counter() - began
        wrong += _wrong(mount, visible[:count])
        return Row(count, start, empty, full, calls, added, back, wrong)


def _wrong(mount: Mount, visible: Sequence[Sequence[str]]) -> int:
    """Read the values of each app. Returns how many are wrong."""
    read = ((name, mount.path / f"app-{number}/file" / name) for number, names in enumerate(visible) for name in names)
    return sum(path.read_bytes() != f"{name:{SIZE}}".encode() for name, path in read)


def _visible(names: Sequence[str], number: int, values: int) -> Sequence[str]:
    """Return what one app sees: neighbours share half of it."""
    first = number * values // 2
    return [names[place % len(names)] for place in range(first, first + values)] if len(names) > values else names


def _configuration(number: int, visible: Sequence[str]) -> str:
    """Return a Configuration that allows an app some secrets; JSON is YAML."""
    scope = {"storeName": "file", "defaultAccess": "deny", "allowedSecrets": list(visible)}
    document = {
        "apiVersion": "dapr.io/v1alpha1",
        "kind": "Configuration",
        "metadata": {"name": f"app-{number}"},
        "spec": {"secrets": {"scopes": [scope]}},
    }
    return json.dumps(document)


def _declare(path: Path, number: int, *, own: bool = False) -> None:
    spec = {"owner": str(FIRST_USER + number)} | ({"configuration": f"app-{number}"} if own else {})
    document = {"apiVersion": "secretfs/v1alpha1", "kind": "App", "metadata": {"name": f"app-{number}"}, "spec": spec}
    path.write_text(json.dumps(document), "utf-8")


def _calls(mount: Mount) -> int:
    status = json.loads((mount.path / ".secretfs/status.json").read_bytes())
    made: int = status["stores"]["file"]["calls"]["fetch"]["made"]
    return made


if __name__ == "__main__":
    sys.exit(main())
