"""How long a look-up takes of what is hidden, and of what is nowhere: nobody should be able to tell them apart.

    python -m benchmarks.apart

One app may see half of a store and asks for names of the other half, and for names that nobody has; then the same in
the directory of another app. Both are asked for in turns. Needs root: nobody else can mount for other users.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.fixtures import BenchmarkError, Fixtures
from tests.support.manifests import component, configuration, scope

USER = 5000
NAMES = 200


def main() -> int:
    """Measure and print the medians and their ratio."""
    parser = argparse.ArgumentParser("python -m benchmarks.apart", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="look-ups of each name")
    arguments = parser.parse_args()
    try:
        with Fixtures() as fixtures:
            _measure(fixtures, arguments.rounds)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(fixtures: Fixtures, rounds: int) -> None:
    resources, apps = fixtures.directory("resources"), fixtures.directory("apps")
    secrets = fixtures.directory("secrets") / "secrets.json"
    secrets.write_text(json.dumps({f"{kind}-{n}": "x" for kind in ("shown", "there") for n in range(NAMES)}), "utf-8")
    component(resources, "file", "local.file", {"secretsFile": secrets}, annotations={"secretfs/ttl": "1h"})
    shown = [f"shown-{number}" for number in range(NAMES)]
    half = configuration(fixtures.directory("configs"), scope("file", default="deny", allowed=shown), name="half")
    for number, app in enumerate(("own", "other")):
        document = {"apiVersion": "secretfs/v1alpha1", "kind": "App", "metadata": {"name": app}}
        document |= {"spec": {"owner": str(USER + number), "configuration": "half"}}
        (apps / f"{app}.yaml").write_text(json.dumps(document), "utf-8")
    options = ("--apps", str(apps), "--allow-other", "--config", str(half))
    with fixtures.secretfs(resources, options=options) as mount:
        for directory in (mount.path.parent, fixtures.scratch):  # others have to get there
            directory.chmod(0o711)
        for where, first, second in (
            ("own/file", "there", "never"),
            ("other/file", "shown", "never"),
        ):
            samples = _as_user(mount.path / where, (first, second), rounds)
            one, other = (statistics.median(sample) for sample in samples)
            print(f"{where:12} {first} {one * 1e6:6.1f} us  {second} {other * 1e6:6.1f} us  ratio {one / other:.3f}")


def _as_user(directory: Path, kinds: Sequence[str], rounds: int) -> list[list[float]]:
    """Look names of each kind up as the user of an app, in turns. Returns the seconds that each took."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        samples: list[list[float]] = [[] for _ in kinds]
        for _ in range(rounds):
            for number in range(NAMES):
                for kind, sample in zip(kinds, samples, strict=True):
                    path = f"{directory}/{kind}-{number}"
                    began = time.perf_counter()
                    with suppress(OSError):
                        os.stat(path)  # noqa: PTH116 - nothing else is measured
                    sample.append(time.perf_counter() - began)
        with os.fdopen(write, "w") as answer:
            json.dump(samples, answer)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        found: list[list[float]] = json.load(answer)
    os.wait()
    return found


if __name__ == "__main__":
    sys.exit(main())
