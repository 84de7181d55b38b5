"""Which parameters a stage trains, and what belongs to whom. Knows nothing of how they are trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from torch import nn

from smoothtune.config.stage import Stage
from smoothtune.errors import UsageError
from smoothtune.nn.model import MultiTaskModel


def chosen_parameters(model: MultiTaskModel, stage: Stage, tasks: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """What the stage trains, by full name. Raises `UsageError` for a selection without parameters, or a task without any."""
    try:
        chosen = selected(model, stage.train, tasks)
    except ValueError as error:
        raise UsageError(f"stage {stage.name}: train: {error}; correct the selection") from None
    for task in tasks:
        parts = ("encoder.", f"trunks.{model.tasks[task].trunk}.", *own_parts(task))
        if not any(name.startswith(parts) for name in chosen):
            what = f"{', '.join(stage.train)} leaves nothing to learn from task {task}"
            raise UsageError(
                f"stage {stage.name}: train: {what}; select its output, or leave it out of the stage's tasks"
            )
    return chosen


def selected(model: MultiTaskModel, selectors: Iterable[str], tasks: Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters that `selectors` name, by full name; `trunks`, `outputs`, `lora` and `adapters` mean those of `tasks`.

    A part without parameters may be meant by `trunks` (a mean has none), but not by its own name: `ValueError`.
    """
    names, wanted = list(tasks), list(selectors)
    chosen: dict[str, nn.Parameter] = {}
    for selector in wanted:
        found = {name: part for name, part in model.named_parameters() if _names(model, selector, name, names)}
        if not found and "." in selector:
            raise ValueError(f"{selector!r} names no parameter of this model")
        chosen.update(found)
    if not chosen:
        raise ValueError(f"{', '.join(wanted)} names no parameter of this model")
    return chosen


def _names(model: MultiTaskModel, selector: str, parameter: str, tasks: list[str]) -> bool:
    if selector == "encoder":
        return parameter.startswith("encoder.")
    if selector == "encoder.embeddings":
        return parameter.startswith("encoder.") and model.encoder.depth_of(parameter.removeprefix("encoder.")) == 0
    if selector.startswith("encoder.layers."):
        first, _, last = selector.removeprefix("encoder.layers.").partition("-")
        depths = range(int(first) + 1, int(last or first) + 2)
        return parameter.startswith("encoder.") and model.encoder.depth_of(parameter.removeprefix("encoder.")) in depths
    if selector == "trunks":
        return any(parameter.startswith(f"trunks.{model.tasks[task].trunk}.") for task in tasks)
    if selector in ("outputs", "lora", "adapters"):
        return any(parameter.startswith(f"{selector}.{task}.") for task in tasks)
    return parameter.startswith(f"{selector}.")


def counted(chosen: Mapping[str, nn.Parameter], selectors: Iterable[str]) -> dict[str, int]:
    """How many parameters train by part: what `selectors` name of the encoder, `trunks.NAME`, `outputs.TASK` and so on."""
    inside = [selector for selector in selectors if selector.partition(".")[0] == "encoder"]
    encoder = "encoder" if "encoder" in inside else ", ".join(inside)
    counts: dict[str, int] = {}
    for name, parameter in chosen.items():
        part, rest = name.split(".", 1)
        key = encoder if part == "encoder" else f"{part}.{rest.partition('.')[0]}"
        counts[key] = counts.get(key, 0) + parameter.numel()
    return counts


def own_parts(task: str) -> tuple[str, ...]:
    """How the names of the parameters begin that belong to the task alone."""
    return tuple(f"{part}.{task}." for part in ("outputs", "lora", "adapters"))


def begins_trained(model: MultiTaskModel, tasks: tuple[str, ...], trained: Set[str]) -> bool:
    """Whether all outputs and trunks of `tasks` are among the parameters already `trained`, so that the model is a result."""
    heads = tuple(part for task in tasks for part in (f"outputs.{task}.", f"trunks.{model.tasks[task].trunk}."))
    return {name for name, _ in model.named_parameters() if name.startswith(heads)} <= trained
