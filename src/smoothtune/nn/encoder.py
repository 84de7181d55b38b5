"""The seam of the shared encoder: what every encoder takes, gives back and can be asked.

Trunks, regularisers and training see an encoder only through this class. It knows nothing of any architecture, of files
or of tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from smoothtune.config.adaptations import Target
from smoothtune.errors import ModelFileError, UsageError
from smoothtune.nn.adaptation import Adaptations
from smoothtune.types import Tokens

_NAMES_SHOWN = 4


class Encoded(NamedTuple):
    """What a pass gives: `states` (R, T, D), and if asked for `inputs`, those of layers 0..L-1, each (R, T, D)."""

    states: Tensor
    inputs: tuple[Tensor, ...]

    def of_layers(self, layers: tuple[int, ...] | None) -> Tensor:
        """The states after each of `layers`, 0 being the embeddings, side by side (R, T, K * D); of None, after the last.

        Only of a pass that kept its inputs from the first layer on.
        """
        if layers is None:
            return self.states
        every = (*self.inputs, self.states)
        return torch.cat([every[layer] for layer in layers], dim=2)

    def part(self, begin: int, end: int, width: int) -> Encoded:
        """Rows `begin` to `end`, their first `width` tokens."""
        states, *inputs = (part[begin:end, :width] for part in (self.states, *self.inputs))
        return Encoded(states, tuple(inputs))


class Encoder(nn.Module, ABC):
    """Token ids to token states.

    `width` is D, `depth` L, `architecture` the checkpoint's config.json as a dict, `max_tokens` the longest row it can
    read (None: no limit of its own), `layers_path` the path of the list of layers inside this module. `begins_anywhere`:
    whether a pass can begin at the input of a later layer (`start`).
    """

    width: int
    depth: int
    architecture: dict[str, Any]
    max_tokens: int | None
    layers_path: str
    begins_anywhere: bool = False

    @abstractmethod
    def forward(
        self,
        tokens: Tokens,
        *,
        perturbation: Tensor | None = None,
        layer: int = 0,
        keep_inputs: bool = False,
        start: Tensor | None = None,
        rows: Tensor | None = None,
        adaptations: Adaptations | None = None,
    ) -> Encoded:
        """Encode `tokens`, with `perturbation` (R, T, D) added to the input of layer `layer`.

        The input of layer 0 is the embedding output after position, type, normalisation and dropout. A zero
        perturbation changes nothing, to the bit, in eval mode; gradients flow to it. With `keep_inputs` the layer
        inputs are kept, the perturbation included; those of layers that the pass does not run through are left out.

        `start` (R, T, D) is the input of `layer` in an earlier pass: the pass begins there. `rows` (R,) bool: only the states
        of these rows are wanted, the others may be anything. `adaptations` are those that runs of rows go through, all R of
        them; None for the bare encoder. Raises `UsageError` for a layer, length or shape that cannot be.
        """

    @abstractmethod
    def weight_of(self, layer: int, target: Target) -> Tensor:
        """The weight (M, K) of a product of a layer, detached: a view, so that what is written to it is the encoder's.

        Raises `UsageError` where this encoder has no such product of its own.
        """

    @abstractmethod
    def hub_path(self, layer: int, target: Target) -> str:
        """The path of the same product's module in the model of transformers, without a prefix."""

    @abstractmethod
    def hub_state(self) -> dict[str, Tensor]:
        """A copy of the weights under the names that transformers gives them, without a prefix."""

    @abstractmethod
    def load_hub_state(self, state: Mapping[str, Tensor]) -> None:
        """Take weights under transformers' names, with or without the prefix of a model with a head.

        Weights of heads and poolers are left aside. Raises `ModelFileError` that names what is missing or misshaped.
        """

    @property
    def vocabulary(self) -> int:
        """How many token ids it knows: the rows of its first table, that of words."""
        return next(module.num_embeddings for module in self.modules() if isinstance(module, nn.Embedding))

    def depth_of(self, parameter: str) -> int:
        """How deep a parameter of this module lies: 0 embeddings, k + 1 layer k, L + 1 what comes after the layers."""
        inside = parameter.removeprefix(f"{self.layers_path}.")
        if inside != parameter:
            return int(inside.split(".", 1)[0]) + 1
        return 0 if any("embeddings" in part for part in parameter.split(".")) else self.depth + 1

    def give_sparse_gradients(self, wanted: bool) -> None:
        """Whether the word table's gradient may be a sparse tensor of the rows that were read; by default it never is."""
        return None

    def check(self, tokens: Tokens, layer: int) -> None:
        """Raise `UsageError` when there is no such layer, or when the rows are longer than the checkpoint can read."""
        if not 0 <= layer < self.depth:
            raise UsageError(
                f"perturbation: layer {layer} does not exist; this encoder has layers 0 to {self.depth - 1}"
            )
        length = tokens.input_ids.shape[1]
        if self.max_tokens is not None and length > self.max_tokens:
            raise UsageError(
                f"encoder: a row of {length} tokens is longer than the {self.max_tokens} this checkpoint can read; "
                f"set encoder.max_length to {self.max_tokens} or less"
            )


def fitting(perturbation: Tensor, tokens: Tokens, width: int) -> Tensor:
    """`perturbation`, if it has one value per row, token and feature: (R, T, `width`)."""
    expected = (*tokens.mask.shape, width)
    if perturbation.shape != expected:
        raise UsageError(
            f"perturbation: its shape is {tuple(perturbation.shape)}, but the input of the layer is {expected}; "
            "make one value per row, token and feature"
        )
    return perturbation


def perturbed(x: Tensor, perturbation: Tensor) -> Tensor:
    """`x` + `perturbation`, both (R, T, D), in the type of `x`, so that a zero perturbation changes no bit."""
    return x + perturbation.to(x.dtype)


def matched_state(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, prefix: str, layers_path: str
) -> dict[str, Tensor]:
    """The entries of `state` that `expected` asks for, under its names.

    Names in `state` may carry `prefix`, and the old LayerNorm names gamma and beta. Other entries are left aside,
    except inside the layers (`layers_path`): a weight there that nobody reads means another architecture. Raises
    `ModelFileError` that names every kind of misfit.
    """
    named = {_modern(key.removeprefix(prefix)): tensor for key, tensor in state.items()}
    missing = [key for key in expected if key not in named]
    misshaped = [
        f"{key} is {tuple(named[key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in named and named[key].shape != tensor.shape
    ]
    unread = [key for key in named if key.startswith(f"{layers_path}.") and key not in expected]
    problems = [
        f"{what}: {_some(names)}"
        for what, names in (("missing", missing), ("misshaped", misshaped), ("not of this encoder", unread))
        if names
    ]
    if problems:
        raise ModelFileError(
            f"the weights do not fit config.json; {'; '.join(problems)}; "
            "use the config.json and the weights of one and the same checkpoint"
        )
    return {key: named[key] for key in expected}


def _modern(key: str) -> str:
    """`key` with the LayerNorm names of checkpoints converted from TensorFlow brought up to date."""
    if key.endswith("LayerNorm.gamma"):
        return key.removesuffix("gamma") + "weight"
    return key.removesuffix("beta") + "bias" if key.endswith("LayerNorm.beta") else key


def _some(names: Iterable[str]) -> str:
    every = sorted(names)
    more = len(every) - _NAMES_SHOWN
    return ", ".join(every[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
