"""What a model of transformers, its training arguments and the `smoothness` beside them have to be for the term to be true.

Knows nothing of tensors or passes.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from smoothtune.config.regularisers import PRESETS
from smoothtune.errors import UsageError
from smoothtune.integrations.second_pass import embeddings_of
from smoothtune.smoothness import Smoothness
from smoothtune.types import Kind


def smoothness_for(model: nn.Module, args: Any, smoothness: object) -> Smoothness:
    """The object that `smoothness` stands for: itself, or that of a preset's name. Raises `UsageError`."""
    if not isinstance(smoothness, str | Smoothness):
        raise UsageError(
            f"smoothness: got {smoothness!r}, expected the name of a preset ({', '.join(PRESETS)}), None, or an object "
            'with options, such as Smoothness("classification", weight=3.0)'
        )
    kind = kind_of(model.config)
    embeddings_of(model)
    if isinstance(smoothness, str):
        smoothness = _preset(kind, smoothness)
    if smoothness.kind != kind:
        raise UsageError(
            f"smoothness: got kind {smoothness.kind!r}, but the model's problem_type and num_labels say {kind!r}; "
            f"make it Smoothness({kind!r}, ...) or set model.config.problem_type"
        )
    _check_settings(model, args)
    return smoothness


def kind_of(config: Any) -> Kind:
    """The kind of a model's task, by `problem_type` and `num_labels`. Raises `UsageError` where no divergence belongs to it."""
    problem, labels = config.problem_type, config.num_labels
    if problem == "multi_label_classification" and labels == 1:
        return "binary"
    if problem == "single_label_classification" or (problem is None and labels > 1):
        return "classification"
    if problem in (None, "regression") and labels == 1:
        return "regression"
    raise UsageError(
        f"smoothness: got a model with problem_type {problem!r} and num_labels {labels}; "
        "it is for one label of several classes, one binary logit, or one number"
    )


def _preset(kind: Kind, name: str) -> Smoothness:
    if kind == "regression":
        raise UsageError(
            f"smoothness: got {name!r} for a model with one regression output; its label range is needed: "
            f'smoothness=Smoothness("regression", preset={name!r}, range=(lowest, highest))'
        )
    return Smoothness(kind, preset=name)


def _check_settings(model: nn.Module, args: Any) -> None:
    # Releases of transformers 5 before the newer name know the older alone, later ones perhaps the newer alone.
    checkpointing = "activation" if hasattr(args, "activation_checkpointing") else "gradient"
    for given, why in (
        (args.fp16, "fp16=True: the search's gradients are too small for it; use bf16=True or neither"),
        (args.n_gpu > 1, "several GPUs in one process: start one process per GPU, with torchrun"),
        (args.torch_compile, "torch_compile=True: its dropout masks cannot be drawn again; leave it out"),
        (
            _reentrant(args, f"{checkpointing}_checkpointing"),
            "reentrant gradient checkpointing: no gradient of the input alone comes through it; "
            f'set {checkpointing}_checkpointing_kwargs={{"use_reentrant": False}}',
        ),
        (
            _adds_tokens(model),
            "prompt tuning of peft: it puts tokens of its own before those of the batch; use LoRA, or smoothness=None",
        ),
    ):
        if given:
            raise UsageError(f"smoothness does not work with {why}")


def _reentrant(args: Any, name: str) -> bool:
    """Whether layers are recomputed by torch's older form of checkpointing, which refuses `torch.autograd.grad`.

    It is also what arguments that name no form get: transformers chooses the newer form only where it is given none.
    """
    given = getattr(args, f"{name}_kwargs") or {}
    passed_on = {key: value for key, value in given.items() if key not in ("every_n_layers", "offload")}
    return bool(getattr(args, name) and passed_on and passed_on.get("use_reentrant") in (None, True))


def _adds_tokens(model: nn.Module) -> bool:
    config: Any = getattr(model, "active_peft_config", None)
    # Prefixes stand in the layers, beside tokens that stay where they were.
    return config is not None and config.is_prompt_learning and config.peft_type != "PREFIX_TUNING"
