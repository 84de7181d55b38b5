"""The hooks by which a pass enters a transformers encoder: perturbation, layer inputs, LoRA and adapters.

A hook is set once and stays. What it does is read from the pass under way in its thread, so that threads share an encoder;
outside a pass it does nothing. Knows nothing of whole models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from smoothtune.config.adaptations import Target
from smoothtune.nn.adaptation import InLayer
from smoothtune.nn.adapters import Site
from smoothtune.nn.encoder import perturbed
from smoothtune.runtime.forking import ProcessLock

# The product whose result an adapter at a site reads.
_BEFORE: dict[Target, Site] = {"output": "attention", "down": "output"}


@dataclass(frozen=True, slots=True)
class PassState:
    """What one pass does on its way.

    `perturbation` (R, T, D) is added to the input of layer `layer`, `inputs` receives the layers' inputs, `changes` holds
    what each layer's products become; None where a pass does not do so.
    """

    perturbation: Tensor | None = None
    layer: int = 0
    inputs: list[Tensor] | None = None
    changes: Sequence[InLayer] | None = None

    def entering(self, layer: int, x: Tensor) -> Tensor:
        """The input `x` (R, T, D) of a layer as this pass has it."""
        if self.perturbation is not None and layer == self.layer > 0:
            x = perturbed(x, self.perturbation)
        if self.inputs is not None:
            self.inputs.append(x)
        return x


_current: ContextVar[PassState | None] = ContextVar("smoothtune_wrapped_pass", default=None)
_setting = ProcessLock()


@contextmanager
def in_pass(state: PassState) -> Iterator[None]:
    """Inside, the hooks of the encoder that is called do what `state` says, in this thread alone."""
    token = _current.set(state)
    try:
        yield
    finally:
        _current.reset(token)


class Hooks:
    """The hooks of one encoder; those of a kind are set when a pass first needs them, since each costs every later pass."""

    def __init__(self) -> None:
        self._set: frozenset[str] = frozenset()

    def on_embeddings(self, site: nn.Module) -> None:
        """A perturbation of layer 0 is added to what `site` gives."""
        self._once("embeddings", lambda: site.register_forward_hook(_after_embeddings))

    def on_inputs(self, blocks: nn.ModuleList) -> None:
        """Later perturbations, and layer inputs that are kept."""

        def register() -> None:
            for layer, block in enumerate(blocks):
                block.register_forward_pre_hook(_before_layer(layer), with_kwargs=True)

        self._once("inputs", register)

    def on_products(self, blocks: nn.ModuleList, names: Mapping[Target, str]) -> None:
        """LoRA and adapters of the products at the paths `names` in each block."""

        def register() -> None:
            for layer, block in enumerate(blocks):
                for target, name in names.items():
                    block.get_submodule(name).register_forward_hook(_after_product(layer, target))

        self._once("products", register)

    def _once(self, kind: str, register: Callable[[], object]) -> None:
        """The first who asks registers; others wait until it is done."""
        if kind in self._set:
            return
        with _setting:
            if kind not in self._set:
                register()
                self._set |= {kind}


def _after_embeddings(module: nn.Module, arguments: tuple[Any, ...], x: Tensor) -> Tensor | None:
    state = _current.get()
    if state is None or state.perturbation is None or state.layer > 0:
        return None
    return perturbed(x, state.perturbation)


def _before_layer(layer: int) -> Any:
    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        state = _current.get()
        if state is None:
            return None
        x = state.entering(layer, arguments[0] if arguments else named["hidden_states"])
        return ((x, *arguments[1:]), named) if arguments else (arguments, {**named, "hidden_states": x})

    return hook


def _after_product(layer: int, target: Target) -> Any:
    site = _BEFORE.get(target)

    def hook(module: nn.Module, arguments: tuple[Any, ...], y: Tensor) -> Tensor | None:
        state = _current.get()
        if state is None or state.changes is None:
            return None
        change = state.changes[layer]
        y = change.low_rank(target, arguments[0], y)
        return y if site is None else change.adapted(site, y)

    return hook
