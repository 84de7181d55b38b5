"""Reads an experiment: a TOML file, a packaged name or a table, with overrides, into one checked `Experiment`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import ValidationError

from smoothtune.bounded import UnreadableError, parse_toml, read_text
from smoothtune.config.cross_checks import cross_checks
from smoothtune.config.experiment import Experiment
from smoothtune.config.problems import near, problems_of
from smoothtune.config.regularisers import PRESETS
from smoothtune.config.stage import Rates
from smoothtune.errors import ConfigurationError, Problem, UsageError

PACKAGED = Path(__file__).parent / "packaged"
DATA_VARIABLE = "SMOOTHTUNE_DATA"
_ADAPTATIONS: tuple[Literal["lora", "adapters"], ...] = ("lora", "adapters")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked experiment and the folder its data paths are relative to."""

    experiment: Experiment
    base: Path


def packaged_names() -> tuple[str, ...]:
    """The names of the experiments that ship with smoothtune."""
    return tuple(sorted(path.relative_to(PACKAGED).with_suffix("").as_posix() for path in PACKAGED.rglob("*.toml")))


def find(source: str) -> Path:
    """The TOML file of a path or packaged name. Raises `UsageError` when there is none."""
    if source in packaged_names():
        return PACKAGED / f"{source}.toml"
    try:
        path = Path(source).expanduser()
        if path.is_file():
            return path
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"{source[:200]!r}: cannot be the path of an experiment file ({error})") from None
    if path.suffix == ".toml" or path.exists():
        raise UsageError(
            f"{source}: there is no such experiment file; check the path or run `smoothtune list experiments`"
        )
    hint = near(source, packaged_names())
    raise UsageError(f"{source}: no file and no packaged experiment (packaged: {', '.join(packaged_names())}).{hint}")


def load(
    source: str | Path | Mapping[str, Any] | Experiment,
    *,
    overrides: Iterable[str] = (),
    data_dir: str | Path | None = None,
    seed: int | None = None,
) -> Loaded:
    """The checked experiment of a TOML path, packaged name, table or `Experiment`.

    `overrides` are `path=value` with the value in TOML (bare words are text). Data paths are relative to `data_dir`,
    else to the TOML file; without a file of one's own to the working folder, and for packaged experiments first to the
    folder that SMOOTHTUNE_DATA names. An `encoder.name` that begins with ./ or ../ is relative to the TOML file, else to
    the working folder, and absolute in the result. Raises `ConfigurationError` with every problem found.
    """
    table, headline, home = _read(source)
    overrides = tuple(overrides)
    left_open = "stages" not in table and "recipe" not in table
    for override in overrides:
        _override(table, override)
    if left_open and "recipe" not in table:
        _refuse_stages(overrides)
    if seed is not None:
        table["seed"] = seed
    packaged = home is not None and home.is_relative_to(PACKAGED)
    own = Path.cwd() if home is None or packaged else home
    experiment = _with_encoder_from(validated(table, headline), own)
    if data_dir is not None:
        return Loaded(experiment, _folder("--data-dir", data_dir))
    variable = os.environ.get(DATA_VARIABLE)
    return Loaded(experiment, _folder(DATA_VARIABLE, variable) if packaged and variable else own)


def validated(table: Mapping[str, Any], headline: str) -> Experiment:
    """The experiment of a table. Raises `ConfigurationError` with every problem found."""
    experiment = _parsed(table, headline)
    problems = cross_checks(experiment)
    if problems:
        raise ConfigurationError(headline, problems)
    return experiment


def validated_run(table: Mapping[str, Any], headline: str) -> Experiment:
    """The same of a run's own file, which may write out defaults of LoRA and adapters that no stage trains.

    A run that lacks a key of `before_keys` is older than the key.
    """
    table = before_keys(table)
    experiment = _parsed(table, headline)
    idle = {part for part in _ADAPTATIONS if not experiment.adapts(part)}
    said = {part for part in idle if getattr(experiment, part) == Experiment.model_fields[part].default}
    return validated({key: value for key, value in table.items() if key not in said}, headline)


def before_keys(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a run with the keys that it is older than.

    Such runs held out by the hash of the texts, obeyed special tokens in them, and had class labels by number.
    """
    encoder = table.get("encoder", {})
    if isinstance(encoder, Mapping):
        table = {**table, "encoder": {"special_tokens": "tokens", **encoder}}
    return {"hold_out": "hashed", "class_labels": "numbers", **table}


def to_toml(experiment: Experiment) -> str:
    """The experiment as TOML with every value written out that something reads; reading it gives an equal experiment."""
    table = _without_nones(experiment.model_dump(mode="json", by_alias=True))
    for part in _ADAPTATIONS:
        if part not in experiment.model_fields_set and not experiment.adapts(part):
            del table[part]  # a table that nothing reads is refused
    if experiment.recipe == "auto":
        del table["stages"]  # they are chosen from the data
    for stage in table.get("stages", ()):
        stage.setdefault("gradient_clip", False)
        del stage["schedule_options"]["kind"]  # `schedule` says it; a second place could contradict it
    return tomli_w.dumps(table)


def _parsed(table: Mapping[str, Any], headline: str) -> Experiment:
    try:
        return Experiment.model_validate(dict(table))
    except ValidationError as error:
        raise ConfigurationError(headline, problems_of(error, Experiment)) from None


def _with_encoder_from(experiment: Experiment, base: Path) -> Experiment:
    name = experiment.encoder.name
    if not name.startswith(("./", "../")):
        return experiment
    try:
        encoder = experiment.encoder.model_copy(update={"name": str((base / name).resolve())})
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigurationError(
            "the experiment cannot be run:", [Problem("encoder.name", f"{name[:200]!r} is no path ({error})")]
        ) from None
    return experiment.model_copy(update={"encoder": encoder})


def _folder(given_by: str, name: str | Path) -> Path:
    try:
        folder = Path(name).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{given_by} {name}: cannot be the path of a folder ({error})") from None
    if not folder.is_dir():
        raise UsageError(f"{given_by} {name}: there is no such folder")
    return folder.resolve()


def _read(source: str | Path | Mapping[str, Any] | Experiment) -> tuple[dict[str, Any], str, Path | None]:
    if isinstance(source, Experiment):
        table = parse_toml(to_toml(source))
        for keys, part in ((table, source), (table["encoder"], source.encoder)):
            for key in {"hold_out", "class_labels", "special_tokens"} & keys.keys() - part.model_fields_set:
                del keys[key]  # a run that is resumed says it
        return table, "the experiment cannot be run:", None
    if isinstance(source, Mapping):
        return deepcopy(dict(source)), "the experiment cannot be run:", None
    path = find(str(source))
    headline = f"{source}: the experiment cannot be run:"
    try:
        table = parse_toml(read_text(path))
    except ValueError as error:
        raise ConfigurationError(headline, [Problem(str(path), f"is not valid TOML: {error}")]) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    packaged = path.is_relative_to(PACKAGED)
    name = path.relative_to(PACKAGED).with_suffix("").as_posix() if packaged else path.stem
    table.setdefault("name", re.sub(r"[^A-Za-z0-9_./-]", "-", name)[:120])
    return table, headline, path.parent if packaged else path.resolve().parent


def _override(table: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise UsageError(f"--set {override}: expected PATH=VALUE, for example stages.0.stop.max_epochs=2")
    node: Any = table
    for position, key in enumerate(keys[:-1]):
        node = _child(node, key, override, ".".join(keys[:position]))
    if keys[-1] == "preset" and isinstance(node, dict):
        _refuse_idle_preset(node, override, ".".join(keys[:-1]))
    _assign(node, keys[-1], _value(text), override, ".".join(keys[:-1]))


def _refuse_stages(overrides: Iterable[str]) -> None:
    """A file without stages leaves them to the recipe, and a single key of one would put a plain stage in its place."""
    for override in overrides:
        if override.strip().startswith("stages."):
            raise UsageError(
                f"--set {override}: this file has no [[stages]], the recipe chooses them; add --set recipe=none for one plain "
                "stage, or write [[stages]]"
            )


def _refuse_idle_preset(node: dict[str, Any], override: str, at: str) -> None:
    """Keys that are given win over a preset: where all are, as in a run's experiment.toml, another one is never read."""
    if {key for preset in PRESETS.values() for key in preset} <= set(node):
        whole = f"--set '{at}={{kind=\"smoothness\", preset=...}}'"
        raise UsageError(
            f"--set {override}: {at} writes out every key that a preset stands for, so another one would change nothing; "
            f"override these keys, or give it as a whole: {whole}"
        )


def _child(node: Any, key: str, override: str, at: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, key, override, at)]
    if not isinstance(node, dict):
        raise UsageError(f"--set {override}: {at} is a value, not a table")
    if key == "stages" and key not in node:
        node[key] = [{"name": "train"}]
    if key == "regularisers" and at.startswith("stages."):
        node.setdefault(key, [])
    if key == "learning_rate" and not isinstance(node.get(key, {}), dict):
        node[key] = dict.fromkeys(Rates.model_fields, node[key])
    return node.setdefault(key, {})


def _assign(node: Any, key: str, value: Any, override: str, at: str) -> None:
    if isinstance(node, list):
        node[_index(node, key, override, at)] = value
    elif isinstance(node, dict):
        node[key] = value
    else:
        raise UsageError(f"--set {override}: {at} is a value, not a table")


def _index(node: list[Any], key: str, override: str, at: str) -> int:
    if not node:
        raise UsageError(f"--set {override}: {at} has no entries; give it as a whole: --set '{at}=[...]'")
    if not key.isdecimal() or int(key) >= len(node):
        raise UsageError(f"--set {override}: {at} has entries 0 to {len(node) - 1}, got {key!r}")
    return int(key)


def _value(text: str) -> Any:
    try:
        return parse_toml(f"value = {text}")["value"]
    except UnreadableError as error:
        raise UsageError(f"--set: the value {text[:80]!r} {error}") from None
    except ValueError:
        return text.strip()


def _without_nones(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nones(item) for key, item in value.items() if item is not None}
    return [_without_nones(item) for item in value] if isinstance(value, list) else value
