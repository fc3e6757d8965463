"""``python -m secretfs``."""

from secretfs.cli import main

if __name__ == "__main__":
    main()
