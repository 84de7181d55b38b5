"""What an experiment can name, with one line each: taken from the option classes' own docstrings."""

from __future__ import annotations

import tomllib
import typing
from typing import Any

from smoothtune.config.adaptations import AdapterOptions, LoraOptions
from smoothtune.config.loading import PACKAGED, packaged_names
from smoothtune.config.regularisers import RegulariserOptions
from smoothtune.config.schedules import ScheduleOptions
from smoothtune.config.tasks import Task
from smoothtune.config.trunks import TrunkOptions

_PLAIN: dict[str, dict[str, str]] = {
    "encoders": {
        "minilm": "all-MiniLM-L6-v2, bundled (22.7 M parameters, Apache-2.0; its pre-training saw Quora duplicates)",
        "FOLDER": "a checkpoint folder: config.json, *.safetensors, tokenizer.json",
        "OWNER/NAME": "a Hugging Face id",
    },
    "outputs": {
        "linear": "one linear layer; chosen by the trunk",
        "two_layer": "Linear(F, 1024), Linear(1024, C); chosen by the PWIM trunks (Wang, Tables 2 and 3)",
    },
    "weightings": {
        "none": "every loss counts as it is",
        "fixed": "the task's loss_weight",
        "inverse_size": "w_t = (1 / N_t) / mean_u (1 / N_u) (Wang, section 4.3)",
        "learned": "trainable, 1 / (2 s_t) with penalty ln(1 + s_t); cannot reach zero",
    },
    "presets": {
        "wang": "Wang, section 4.3 and Appendix A: a raw step rescaled to radius 1e-5, new dropout masks",
        "paper": "SMART, Algorithm 1 (Jiang et al., 2020): a normalised step within radius 1e-5, new dropout masks",
        "mtdnn": "what the code of mt-dnn does: per-token norm 1 whatever the radius, new dropout masks; to compare with",
        "exact": "a sign step within a radius that moves the answers, shared dropout masks: the default, to begin with",
        "cheap": "as exact, at every fifth batch with five times the weight",
    },
}


def catalogue() -> dict[str, dict[str, str]]:
    """Names and meanings by table."""
    return {
        "experiments": {name: _headline(name) for name in packaged_names()},
        "encoders": _PLAIN["encoders"],
        "tasks": _kinds(Task),
        "trunks": _kinds(TrunkOptions),
        "outputs": _PLAIN["outputs"],
        "schedules": _kinds(ScheduleOptions),
        "weightings": _PLAIN["weightings"],
        "adaptations": {"lora": _meaning(LoraOptions), "adapters": _meaning(AdapterOptions)},
        "regularisers": _kinds(RegulariserOptions),
        "presets": _PLAIN["presets"],  # of smoothness
    }


def _kinds(union: Any) -> dict[str, str]:
    classes = typing.get_args(typing.get_args(union)[0])
    return {typing.get_args(cls.model_fields["kind"].annotation)[0]: _meaning(cls) for cls in classes}


def _meaning(cls: type[Any]) -> str:
    """The first line of a class's docstring."""
    return (cls.__doc__ or "").strip().splitlines()[0]


def _headline(name: str) -> str:
    """The first comment line of a packaged file."""
    text = (PACKAGED / f"{name}.toml").read_text(encoding="utf-8")
    tomllib.loads(text)
    first = text.splitlines()[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
