"""``python -m scoresde`` is ``scoresde``."""

from scoresde.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
