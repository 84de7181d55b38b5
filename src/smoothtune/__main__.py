"""`python -m smoothtune`."""

from smoothtune.cli.main import main

if __name__ == "__main__":
    main()
