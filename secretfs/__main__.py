"""``python -m secretfs``."""

from secretfs.cli.main import main

if __name__ == "__main__":
    main()
