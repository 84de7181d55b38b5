"""`smoothtune export`: a task's adapted encoder in the files of another library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smoothtune.cli.options import RunFolder, Stage
from smoothtune.errors import UsageError

FORMATS = ("peft",)


def export(
    run: RunFolder,
    task: Annotated[str, typer.Option("--task", metavar="TASK", help="The task whose LoRA to export.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Folder to create.")],
    form: Annotated[
        str, typer.Option("--format", help="peft: FOLDER/encoder for transformers, FOLDER/lora for peft.")
    ] = "peft",
    stage: Stage = None,
) -> None:
    """Export a task's LoRA and its encoder for other libraries.

    \b
    Examples:
      smoothtune export runs/first --task sst --to exported/sst
      smoothtune export runs/first --task sts --to exported/sts --format peft
      smoothtune export runs/first --stage sts --task sts --to exported/sts
    """  # noqa: D301 - click reads \b
    if form not in FORMATS:
        raise UsageError(f"--format: got {form!r}, expected {', '.join(FORMATS)}")
    from smoothtune.cli.tables import give, say
    from smoothtune.inference.model import Model
    from smoothtune.integrations import peft
    from smoothtune.workflow.stage_folders import model_of

    done = peft.export(Model.load(model_of(run, stage), device="cpu"), task, to)
    give(f"encoder\t{done.encoder}")
    give(f"lora\t{done.lora}")
    if done.without_adapters:
        say(f"the bottleneck adapters of {task} are not in it: the layout of peft has no place for them")
