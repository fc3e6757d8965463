"""One of several processes that read at the same time.

    python -m benchmarks.reader

For each line ``SECONDS PATH`` on standard input, reads the file over and over for that long and prints how often.
"""

import os
import sys
import time


def _read_for(seconds: float, path: str) -> int:
    reads, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        descriptor = os.open(path, os.O_RDONLY)
        os.read(descriptor, 4096)
        os.close(descriptor)
        reads += 1
    return reads


def main() -> None:
    """Serve standard input until it ends."""
    for line in sys.stdin:
        seconds, path = line.rstrip("\n").split(" ", 1)
        print(_read_for(float(seconds), path), flush=True)


if __name__ == "__main__":
    main()
