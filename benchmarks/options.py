"""Command-line options that the parts share."""

from __future__ import annotations

import argparse

from rows import data_folder


def parser_of(docstring: str | None, *, repetitions: int = 5) -> argparse.ArgumentParser:
    """A parser with --data-dir, --repetitions, --threads and --device."""
    parser = argparse.ArgumentParser(description=(docstring or "").splitlines()[0])
    parser.add_argument(
        "--data-dir", type=data_folder, default=data_folder(None), help="folder with sst/, quora/, sts/"
    )
    parser.add_argument("--repetitions", type=int, default=repetitions)
    parser.add_argument("--threads", type=int, help="for every side; default: what each side takes by itself")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser
