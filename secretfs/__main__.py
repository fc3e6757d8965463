"""``python -m secretfs``, and the command ``secretfs``."""

import signal
import sys
from contextlib import suppress
from typing import NoReturn

from secretfs.daemon import beginning


def main() -> NoReturn:
    """Run the command line, or the worker that it has started before."""
    turn = None
    try:
        with suppress(OSError):
            turn = beginning.begin(sys.argv[1:])
        if turn is not None:
            from secretfs.cli.standby import be_first  # noqa: PLC0415 - what follows is imported side by side

            be_first(turn)
        from secretfs.cli.main import main as run  # noqa: PLC0415

        run()
    except KeyboardInterrupt:  # while libraries were imported
        sys.exit(128 + signal.SIGINT)
    finally:
        if beginning.begun is not None:
            beginning.begun.end()


if __name__ == "__main__":
    main()
