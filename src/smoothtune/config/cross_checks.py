"""What no single key can know: references between tables, and keys that only make sense together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from smoothtune.config.class_weights import unknown_labels
from smoothtune.config.experiment import Experiment, kind_of, trunk_name, trunk_options
from smoothtune.config.problems import near
from smoothtune.config.regulariser_checks import regulariser_problems
from smoothtune.config.selectors import layers_of, repetitions
from smoothtune.config.stage import START, Rates, Stage
from smoothtune.errors import Problem


def cross_checks(experiment: Experiment) -> list[Problem]:
    """Every contradiction between tables of the experiment."""
    problems = [*_name_problems(experiment), *_column_problems(experiment), *_recipe_problems(experiment)]
    problems += _class_weight_problems(experiment)
    problems += [*_trunk_problems(experiment), *_weight_problems(experiment), *_adaptation_problems(experiment)]
    problems += _refit_problems(experiment)
    for number, stage in enumerate(experiment.stages):
        path = f"stages.{number}"
        problems += _order_problems(path, stage, [earlier.name for earlier in experiment.stages[:number]])
        problems += _stage_problems(experiment, stage, path)
    return problems


def _name_problems(experiment: Experiment) -> Iterator[Problem]:
    for name in ("score", "plain_mean"):
        if name in experiment.tasks:
            yield Problem(f"tasks.{name}", f"a task cannot be called {name!r}: `stop.metric` gives that name to a mean")


def _recipe_problems(experiment: Experiment) -> Iterator[Problem]:
    if experiment.recipe == "auto" and "stages" in experiment.model_fields_set:
        yield Problem("recipe", '"auto" chooses the stages, and [[stages]] are given; remove one of them')


def _column_problems(experiment: Experiment) -> Iterator[Problem]:
    for name, task in experiment.tasks.items():
        if len(set(task.text)) < len(task.text):
            yield Problem(f"tasks.{name}.text", f"names column {task.text[0]!r} twice; a pair needs two columns")
        if task.label in task.text:
            yield Problem(f"tasks.{name}.label", f"{task.label!r} is a text column too; name the column of the answers")


def _trunk_problems(experiment: Experiment) -> Iterator[Problem]:
    used: dict[str, str] = {}
    for name, task in experiment.tasks.items():
        where = f"tasks.{name}.trunk"
        if task.trunk is not None and task.trunk not in experiment.trunks:
            defined = ", ".join(experiment.trunks) or "none"
            hint = near(task.trunk, experiment.trunks)
            yield Problem(where, f"there is no [trunks.{task.trunk}] (defined: {defined}).{hint}")
            continue
        wanted = trunk_options(name, task, experiment.trunks).input
        if (wanted == "single") != (len(task.text) == 1):
            needs = "one text column" if wanted == "single" else "two text columns"
            kind = kind_of(trunk_options(name, task, experiment.trunks))
            yield Problem(where, f"a {kind!r} trunk reads {needs}, but tasks.{name}.text names {len(task.text)}")
        if task.trunk is None and name in experiment.trunks:
            yield Problem(
                f"trunks.{name}", f"has the name of task {name!r}, which uses a trunk of its own; set {where}"
            )
        used[trunk_name(name, task)] = name
    for name in experiment.trunks:
        if name not in used and not any(task.trunk == name for task in experiment.tasks.values()):
            yield Problem(f"trunks.{name}", "no task uses this trunk; remove it or name it in a task")


def _weight_problems(experiment: Experiment) -> Iterator[Problem]:
    if any("fixed" in stage.weighting for stage in experiment.stages):
        return
    for name, task in experiment.tasks.items():
        if task.loss_weight != 1.0:
            yield Problem(f"tasks.{name}.loss_weight", 'is read only by weighting "fixed", which no stage uses')


def _class_weight_problems(experiment: Experiment) -> Iterator[Problem]:
    """Weights of labels that are not listed; where none are listed the data say which there are."""
    for name, task in experiment.tasks.items():
        if task.kind != "regression" and task.labels is not None:
            yield from unknown_labels(name, task.class_weights, task.labels)


def _adaptation_problems(experiment: Experiment) -> Iterator[Problem]:
    """Options of LoRA or adapters that no stage trains, whatever they say."""
    parts: tuple[Literal["lora", "adapters"], ...] = ("lora", "adapters")
    for part in parts:
        read_by_recipe = part == "lora" and experiment.recipe == "auto" and len(experiment.tasks) > 1
        if part in experiment.model_fields_set and not experiment.adapts(part) and not read_by_recipe:
            yield Problem(part, f"is read only by stages that train it, and {_none_does(experiment, part)}")


def _none_does(experiment: Experiment, part: str) -> str:
    if experiment.recipe == "auto":
        of = "of one task " if part == "lora" else ""
        return f'the recipe {of}trains none; write [[stages]] with "{part}" in `train`'
    return f'none does; add "{part}" to a stage\'s `train`'


def _order_problems(path: str, stage: Stage, earlier: list[str]) -> Iterator[Problem]:
    """A name that is taken, and a `from` that is no stage before this one."""
    if stage.name in earlier:
        yield Problem(f"{path}.name", f"{stage.name!r} is the name of another stage; names must differ")
    if stage.name == START:
        yield Problem(
            f"{path}.name", f"a stage cannot be called {START!r}: `from` gives that name to the state before any"
        )
    source = stage.begins_from
    if source is not None and source not in (START, *earlier):
        hint = near(source, [START, *earlier])
        known = ", ".join([START, *earlier])
        yield Problem(f"{path}.from", f"no stage before this one is called {source!r}; known: {known}.{hint}")


def _stage_problems(experiment: Experiment, stage: Stage, path: str) -> Iterator[Problem]:
    tasks = experiment.stage_tasks(stage)
    unknown = [name for name in tasks if name not in experiment.tasks]
    for name in unknown:
        hint = near(name, experiment.tasks)
        yield Problem(f"{path}.tasks", f"there is no task {name!r} (tasks: {', '.join(experiment.tasks)}).{hint}")
    if len(set(tasks)) < len(tasks):
        yield Problem(f"{path}.tasks", f"a task stands twice in {', '.join(tasks)}")
    known = ["score", "plain_mean", *tasks]
    known += [f"{name}.{metric}" for name in tasks if name in experiment.tasks for metric in _metrics(experiment, name)]
    if stage.stop.metric not in known:
        yield Problem(f"{path}.stop.metric", f"got {stage.stop.metric!r}, expected one of {', '.join(known)}")
    yield from _init_problems(experiment, stage, path)
    yield from _per_task_problems(stage, path)
    if len(set(stage.weighting)) < len(stage.weighting):
        yield Problem(f"{path}.weighting", f"a weighting stands twice in {', '.join(stage.weighting)}")
    if not unknown:
        yield from _selector_problems(experiment, stage, path)
        yield from _rate_problems(stage, path)
        yield from regulariser_problems(experiment, stage, path)


def _refit_problems(experiment: Experiment) -> Iterator[Problem]:
    """Probes that are to be fitted again where none is fitted at all."""
    probes = experiment.recipe == "auto" or any(stage.init == "probe" for stage in experiment.stages)
    if experiment.refit == "probes" and not probes:
        yield Problem(
            "refit", 'is "probes", but no stage begins with probes; give a stage init = "probe", or remove it'
        )


def _per_task_problems(stage: Stage, path: str) -> Iterator[Problem]:
    """Tasks that are to leave states of their own while they train something together."""
    shared = [part for part in stage.train if part.partition(".")[0] not in ("outputs", "lora", "adapters")]
    if stage.stop.leaves_each_task and shared:
        what = f"without `stop.patience` each task leaves a state of its own, but {', '.join(shared)} may be shared"
        yield Problem(
            f"{path}.stop.per_task", f"{what}; set `stop.patience`, or train lora, adapters and outputs alone"
        )


def _init_problems(experiment: Experiment, stage: Stage, path: str) -> Iterator[Problem]:
    """Keys of a probe without one, and a probe whose outputs would not train, so that no checkpoint would hold them."""
    stop = stage.stop
    if stage.init is None and stop.max_steps == 0:
        yield Problem(f"{path}.stop.max_steps", 'is 0: nothing would be learned; give 1 or more, or init = "probe"')
    floor = stop.no_task_below_start and not stop.leaves_each_task
    if stop.keep == "last" and (stop.patience is not None or floor):
        other = "patience" if stop.patience is not None else "no_task_below_start"
        yield Problem(f"{path}.stop.keep", f'"last" contradicts `stop.{other}`, which is about the best state')
    lacking = [task for task in experiment.stage_tasks(stage) if not {"outputs", f"outputs.{task}"} & set(stage.train)]
    if stage.init is not None and lacking:
        what = f'"probe" sets the outputs, and those of {", ".join(lacking)} do not train; add "outputs" to `train`'
        yield Problem(f"{path}.init", what)
    for task in experiment.stage_tasks(stage) if stage.init is not None else ():
        shape = experiment.tasks.get(task)
        if shape is None or (shape.trunk is not None and shape.trunk not in experiment.trunks):
            continue
        options = trunk_options(task, shape, experiment.trunks)
        if not options.steady:
            what = f"{kind_of(options)!r} of task {task} has batch norms, whose features change once it trains; leave `init` out"
            yield Problem(f"{path}.init", f"a probe cannot begin the stage: the trunk {what}")


def _rate_problems(stage: Stage, path: str) -> Iterator[Problem]:
    """Rates that nothing reads. A table that names all parts is what one number, or a written-out experiment, stands for."""
    given = stage.learning_rate.model_fields_set
    for part in sorted(given - {*stage.rates_read}) if given < {*Rates.model_fields} else ():
        what = f"is read only by a stage that trains something there, and this one trains {', '.join(stage.train)}"
        yield Problem(f"{path}.learning_rate.{part}", f"{what}; remove it")
    if stage.layer_decay != 1 and not stage.trains_encoder:
        what = f"got {stage.layer_decay:g}, but this stage trains nothing in the encoder"
        yield Problem(f"{path}.layer_decay", f"{what}; remove it")


def _metrics(experiment: Experiment, task: str) -> tuple[str, ...]:
    return get_args(type(experiment.tasks[task]).model_fields["metric"].annotation)


def _selector_problems(experiment: Experiment, stage: Stage, path: str) -> Iterator[Problem]:
    tasks = experiment.stage_tasks(stage)
    trunks = {trunk_name(name, experiment.tasks[name]) for name in tasks}
    known = ["encoder", "encoder.embeddings", "encoder.layers.A-B", "trunks", "outputs", "lora", "adapters"]
    known += [f"trunks.{name}" for name in sorted(trunks)]
    known += [f"{part}.{name}" for part in ("outputs", "lora", "adapters") for name in tasks]
    for selector in stage.train:
        layers = layers_of(selector)
        if layers is not None:
            first, last = layers
            if last < first:
                yield Problem(f"{path}.train", f"{selector!r} names no layers; write encoder.layers.{last}-{first}")
            continue
        if selector not in known or selector == "encoder.layers.A-B":
            hint = near(selector, known)
            yield Problem(f"{path}.train", f"nothing is called {selector!r} here; known: {', '.join(known)}.{hint}")
    for selector, other in repetitions(stage.train):
        what = "stands twice" if selector == other else f"is part of {other!r}, which stands there too"
        yield Problem(f"{path}.train", f"{selector!r} {what}; remove it")
