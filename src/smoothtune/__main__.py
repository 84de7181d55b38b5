"""The program's entry: `smoothtune` and `python -m smoothtune`."""

import sys


def main() -> None:
    """Load the program, which takes a moment in which Ctrl-C may come, and run it."""
    try:
        from smoothtune.cli.main import main as program
    except KeyboardInterrupt:
        sys.exit(130)
    program()


if __name__ == "__main__":
    main()
