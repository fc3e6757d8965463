"""Run a target under atheris, which looks for inputs that reach new code.

    python -m tests.fuzz TARGET [FOLDER FOR NEW INPUTS] [FLAGS OF LIBFUZZER, such as -max_total_time=60]

The seeds are those of ``corpus/TARGET``. An input that makes it fail is written to the working directory: mend the
defect, and add the input to the corpus.
"""

import sys
from pathlib import Path


def main() -> None:
    """Instrument what is imported, and begin."""
    import atheris  # noqa: PLC0415 - only this needs it

    with atheris.instrument_imports(include=["secretfs"]):
        from tests.fuzz.targets import CORPUS, TARGETS  # noqa: PLC0415 - instrumented
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz {{{','.join(TARGETS)}}} [FOLDER] [FLAG...]")
    name, *rest = sys.argv[1:]
    folders, flags = [text for text in rest if not text.startswith("-")], [text for text in rest if text[0] == "-"]
    for folder in folders:
        Path(folder).mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], *folders, str(CORPUS / name), "-rss_limit_mb=2048", *flags], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
