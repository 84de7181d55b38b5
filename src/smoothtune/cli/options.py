"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

Experiment = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="A TOML file or a packaged name (smoothtune list).")
]
DataDir = Annotated[
    Optional[Path],  # noqa: UP045 - typer evaluates it
    typer.Option(
        "--data-dir",
        help="Folder of the data paths; default: the TOML's folder, for packaged experiments $SMOOTHTUNE_DATA.",
    ),
]
Set = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--set", metavar="PATH=VALUE", help="Override a value, e.g. stages.0.stop.max_epochs=2. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
PerClass = Annotated[
    bool, typer.Option("--per-class", help="Show each class and the confusion matrix also of more than 12 classes.")
]
Stage = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--stage", metavar="NAME", help="The model after this stage; default: after the last."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Allow = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--allow",
        metavar="KIND",
        help="Go on although this has changed: data, configuration, encoder, device or format. Repeatable.",
    ),
]
