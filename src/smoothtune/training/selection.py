"""Which parameters a stage trains, and what belongs to whom. Knows nothing of how they are trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from torch import nn

from smoothtune.config.stage import Stage
from smoothtune.errors import UsageError
from smoothtune.nn.dropout import Dropout
from smoothtune.nn.model import MultiTaskModel


def chosen_parameters(model: MultiTaskModel, stage: Stage, tasks: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """What the stage trains, by full name. Raises `UsageError` for a selection without parameters, or a task without any."""
    try:
        chosen = selected(model, stage.train, tasks, drops=not stage.frozen_dropout)
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


def selected(
    model: MultiTaskModel, selectors: Iterable[str], tasks: Iterable[str], *, drops: bool = True
) -> dict[str, nn.Parameter]:
    """The parameters that `selectors` name, by full name; `trunks`, `outputs`, `lora` and `adapters` mean those of `tasks`.

    A trunk without parameters (a mean has none) may be meant by `trunks`, and by its own name where that switches its dropout
    on: not without `drops`, where that is on anyway. Raises `ValueError` for a name that selects nothing.
    """
    names, wanted = list(tasks), list(selectors)
    chosen: dict[str, nn.Parameter] = {}
    for selector in wanted:
        found = {name: part for name, part in model.named_parameters() if _names(model, selector, name, names)}
        if not found and "." in selector and not (drops and _drops(model, selector)):
            raise ValueError(f"{selector!r} names no parameter of this model{_no_dropout(selector, drops)}")
        chosen.update(found)
    if not chosen:
        raise ValueError(f"{', '.join(wanted)} names no parameter of this model")
    return chosen


def freeze_all_but(
    model: MultiTaskModel, chosen: Mapping[str, nn.Parameter], stage: Stage, tasks: tuple[str, ...]
) -> None:
    """Let `chosen` alone have gradients. Trunks hold in `learns` whether the stage selects them: some have no parameters."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    used = {model.tasks[task].trunk for task in tasks} if "trunks" in stage.train else set()
    for name in model.trunks:
        model.trunks[name].learns = name in used or f"trunks.{name}" in stage.train


def _drops(model: MultiTaskModel, selector: str) -> bool:
    """Whether `selector` is a trunk that has dropout."""
    part, _, name = selector.partition(".")
    trunk = model.trunks.find(name) if part == "trunks" else None
    return trunk is not None and any(module.rate > 0 for module in trunk.modules() if isinstance(module, Dropout))


def _no_dropout(selector: str, drops: bool) -> str:
    """Why naming a trunk without parameters does nothing."""
    if not selector.startswith("trunks."):
        return ""
    return ", and has no dropout to switch on" if drops else ", and `frozen_dropout` has its dropout on anyway"


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


def passed_through(
    model: MultiTaskModel, chosen: Mapping[str, nn.Parameter], tasks: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    """By task of the model that is not one of `tasks`: the parts it goes through that `chosen` changes."""
    return {
        task: tuple(
            part for part in ("encoder", f"trunks.{node.trunk}") if any(name.startswith(f"{part}.") for name in chosen)
        )
        for task, node in model.tasks.items()
        if task not in tasks
    }


def own_parts(task: str) -> tuple[str, ...]:
    """How the names of the parameters begin that belong to the task alone."""
    return tuple(f"{part}.{task}." for part in ("outputs", "lora", "adapters"))


def begins_trained(model: MultiTaskModel, tasks: tuple[str, ...], trained: Set[str]) -> bool:
    """Whether all outputs and trunks of `tasks` are among the parameters already `trained`, so that the model is a result."""
    heads = tuple(part for task in tasks for part in (f"outputs.{task}.", f"trunks.{model.tasks[task].trunk}."))
    return {name for name, _ in model.named_parameters() if name.startswith(heads)} <= trained
