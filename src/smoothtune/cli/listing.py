"""`smoothtune list`, `show` and `schema`: what there is. Nothing here imports torch, but to run a recipe."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from smoothtune.cli.options import DataDir, Experiment, Json, Set


def list_things(
    what: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            metavar="WHAT",
            help="experiments, encoders, tasks, trunks, outputs, schedules, weightings, adaptations, regularisers, "
            "presets.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List packaged experiments and every kind that an experiment can name.

    \b
    Examples:
      smoothtune list
      smoothtune list trunks
    """  # noqa: D301 - click reads \b
    from smoothtune.cli.tables import give, give_json
    from smoothtune.config.catalogue import catalogue
    from smoothtune.config.problems import near
    from smoothtune.errors import UsageError

    found = catalogue()
    if what is not None and what not in found:
        raise UsageError(f"list: got {what!r}, expected one of {', '.join(found)}.{near(what, found)}")
    chosen = found if what is None else {what: found[what]}
    if as_json:
        give_json(chosen)
        return
    for title, entries in chosen.items():
        give(f"{title}:")
        width = max(len(name) for name in entries)
        for name, meaning in entries.items():
            give(f"  {name:<{width}}  {meaning}")


def show(
    experiment: Experiment,
    override: Set = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Write out every default too, and what the recipe chooses from the data.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Print an experiment as TOML: the file itself, or (with --set or --resolved) every value it stands for.

    \b
    Examples:
      smoothtune show quick > my.toml
      smoothtune show quick --resolved
    """  # noqa: D301 - click reads \b
    from smoothtune.cli.tables import give
    from smoothtune.config.loading import find, load, to_toml

    loaded = load(experiment, overrides=override or (), data_dir=data_dir)
    if resolved and loaded.experiment.recipe == "auto":
        from smoothtune.cli.watcher import Watcher
        from smoothtune.workflow.train import chosen_experiment

        watcher = Watcher()
        try:
            give(to_toml(chosen_experiment(loaded, listen=watcher)), end="")
        finally:
            watcher.close()
    elif override or resolved:
        give(to_toml(loaded.experiment), end="")
    else:
        give(find(experiment).read_text(encoding="utf-8"), end="")


def schema() -> None:
    """Print the JSON Schema of an experiment, for editors that check TOML.

    \b
    Example:
      smoothtune schema > experiment.schema.json
    """  # noqa: D301 - click reads \b
    from smoothtune.cli.tables import give_json
    from smoothtune.config.experiment import Experiment as Root

    give_json(Root.model_json_schema())
