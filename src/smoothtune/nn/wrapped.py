"""Other encoders of transformers behind our seam, entered through hooks.

It knows the model only by its structure: a module `embeddings`, and one list of as many layers as the configuration
says. It knows nothing of files, tasks or training.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from smoothtune.bounded import reason_of
from smoothtune.config.adaptations import Target
from smoothtune.errors import ModelFileError, UsageError
from smoothtune.nn.adaptation import Adaptations, in_layers
from smoothtune.nn.encoder import Encoded, Encoder, fitting, matched_state
from smoothtune.nn.wrapped_hooks import Hooks, PassState, in_pass
from smoothtune.nn.wrapped_products import product_names
from smoothtune.runtime.random import seeded_globally
from smoothtune.types import Tokens

_HIDDEN_RATES = ("hidden_dropout_prob", "hidden_dropout", "dropout", "embedding_dropout", "mlp_dropout")
_ATTENTION_RATES = ("attention_probs_dropout_prob", "attention_dropout")
# Attention may be a kernel of the Hub, which is code; a label count alone may make a table of any size.
_STRANGE = re.compile(
    r"_?(attn|experts)_implementation.*|auto_map|use_kernels|.*backbone.*|id2label|label2id|num_labels"
)
_MOST, _MOST_LAYERS = 1 << 24, 1_000


class WrappedEncoder(Encoder):
    """An encoder of `transformers.AutoModel` with fresh weights, without its pooler.

    Dropout masks come from torch's global generator, which is seeded from the pass under way and put back after it.
    Raises `ModelFileError` for a model that is not an encoder of this structure, or has no such dropout to override.
    """

    def __init__(
        self, architecture: Mapping[str, Any], dropout: float | None = None, attention_dropout: float | None = None
    ) -> None:
        super().__init__()
        config = _configuration(architecture)
        _override(config, "dropout", dropout, _HIDDEN_RATES)
        _override(config, "attention_dropout", attention_dropout, _ATTENTION_RATES)
        self.architecture = dict(architecture)
        self.model: Any = _build(config)
        inside = _layers_path(self.model, config)
        self.layers_path = f"model.{inside}"
        self.width = config.hidden_size
        self.depth = config.num_hidden_layers
        self.max_tokens = _max_tokens(self.model.embeddings)
        self._hooks = Hooks()
        accepts = inspect.signature(self.model.forward).parameters
        self._positions_adapt = bool(getattr(config, "share_att_key", False))
        self._reads_segments = "token_type_ids" in accepts and getattr(config, "type_vocab_size", 0) > 1
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None

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
        """See `Encoder.forward`. Threads may share it: the state of a pass belongs to the pass.

        All rows are computed, whatever `rows` says: their dropout masks are drawn together. Runs of rows with adaptations of
        their own cannot share a pass where positions go through the products of query and key (DeBERTa v3).
        """
        if adaptations is not None and len(adaptations.runs) > 1 and self._positions_adapt:
            return self._run_by_run(tokens, perturbation, layer, keep_inputs, adaptations)
        self.check(tokens, layer)
        if start is not None:
            raise UsageError("start: this encoder begins every pass at the tokens; leave `start` out")
        given = {"input_ids": tokens.input_ids, "attention_mask": tokens.mask.long()}
        if self._reads_segments and tokens.segments is not None:
            given["token_type_ids"] = tokens.segments
        inputs: list[Tensor] = []
        state = PassState(
            None if perturbation is None else fitting(perturbation, tokens, self.width),
            layer,
            inputs if keep_inputs else None,
            None if adaptations is None else in_layers(adaptations.spans(), self.depth),
        )
        self._set_hooks(state)
        draws = seeded_globally("encoder", tokens.input_ids.device) if self.training else nullcontext()
        with in_pass(state), draws:
            states: Tensor = self.model(**given, return_dict=True).last_hidden_state
        return Encoded(states, tuple(inputs))

    def _set_hooks(self, state: PassState) -> None:
        """Set those that the pass needs and that are not there yet."""
        if state.perturbation is not None and state.layer == 0:
            # ELECTRA and its kin bring narrow embeddings to the width of the layers in a module of their own.
            self._hooks.on_embeddings(getattr(self.model, "embeddings_project", self.model.embeddings))
        if state.inputs is not None or (state.perturbation is not None and state.layer > 0):
            self._hooks.on_inputs(self._layers())
        if state.changes is not None:
            self._hooks.on_products(self._layers(), self._products())

    def _run_by_run(
        self, tokens: Tokens, perturbation: Tensor | None, layer: int, keep_inputs: bool, adaptations: Adaptations
    ) -> Encoded:
        """The same, with a pass for every run of rows."""
        found: list[Encoded] = []
        for span in adaptations.spans():
            rows, alone = slice(span.begin, span.end), Adaptations.of([(span.end - span.begin, span.adaptation)])
            part = tokens.rows(span.begin, span.end)
            change = None if perturbation is None else perturbation[rows]
            found.append(self(part, perturbation=change, layer=layer, keep_inputs=keep_inputs, adaptations=alone))
        inputs = zip(*(part.inputs for part in found), strict=True)
        return Encoded(torch.cat([part.states for part in found]), tuple(map(torch.cat, inputs)))

    def weight_of(self, layer: int, target: Target) -> Tensor:
        """See `Encoder.weight_of`."""
        weight = self._layers()[layer].get_submodule(self._products()[target]).weight
        return cast(Tensor, weight).detach()

    def hub_path(self, layer: int, target: Target) -> str:
        """See `Encoder.hub_path`."""
        return f"{self.layers_path.removeprefix('model.')}.{layer}.{self._products()[target]}"

    def _products(self) -> Mapping[Target, str]:
        return product_names(self._layers()[0], str(self.architecture.get("model_type")))

    def hub_state(self) -> dict[str, Tensor]:
        """See `Encoder.hub_state`."""
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def load_hub_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Encoder.load_hub_state`."""
        expected = self.model.state_dict()
        prefix = f"{self.model.base_model_prefix}."
        inside = self.layers_path.removeprefix("model.")
        self.model.load_state_dict(matched_state(state, expected, prefix=prefix, layers_path=inside))

    def _layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.get_submodule(self.layers_path))


def _configuration(architecture: Mapping[str, Any]) -> Any:
    kind = architecture.get("model_type")
    if kind is None:
        raise ModelFileError(
            'config.json: it has no model_type; add it, or set encoder.implementation = "native" if this is a BERT'
        )
    try:
        known = type(AutoConfig.for_model(kind))
    except (ValueError, TypeError) as error:
        raise ModelFileError(
            f"config.json: transformers has no model_type {kind!r}; models that bring code of their own are not run; "
            "choose an encoder that the installed transformers knows"
        ) from error
    except StrictDataclassError as error:
        raise _wrong_values(error) from error
    try:
        return known.from_dict(_without_strange_parts(architecture))
    except StrictDataclassError as error:
        raise _wrong_values(error) from error


def _wrong_values(error: StrictDataclassError) -> ModelFileError:
    return ModelFileError(f"config.json: {reason_of(error)}; take the checkpoint's own file")


def _without_strange_parts(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers may see: not the keys with which it fetches code or other models, nor the labels of a head.

    Raises `ModelFileError` for sizes that no encoder has.
    """
    for key, value in architecture.items():
        most = _MOST_LAYERS if "layers" in key else _MOST
        if isinstance(value, int) and not -most <= value <= most:
            raise ModelFileError(
                f"config.json: {key[:80]} is {value}, more than any encoder has; take another checkpoint"
            )
        if isinstance(value, dict) and key.endswith("_config"):
            raise ModelFileError(
                f"config.json: {key[:80]} describes another model or a quantised one; choose an encoder that stands alone"
            )
    return {key: value for key, value in architecture.items() if not _STRANGE.fullmatch(key)}


def _build(config: Any) -> Any:
    try:
        return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (ValueError, StrictDataclassError) as error:
        raise ModelFileError(
            f"config.json: no encoder can be made of model_type {config.model_type!r}: {error}; choose another encoder"
        ) from error


def _override(config: Any, option: str, rate: float | None, names: tuple[str, ...]) -> None:
    """Set every field of `names` that the configuration has."""
    if rate is None:
        return
    present = [name for name in names if hasattr(config, name)]
    if not present:
        raise ModelFileError(
            f"encoder.{option}: encoders of model_type {config.model_type!r} have no such rate; leave the option out"
        )
    for name in present:
        setattr(config, name, rate)


def _layers_path(model: nn.Module, config: Any) -> str:
    """The path of the one list of `num_hidden_layers` layers in `model`."""
    count = getattr(config, "num_hidden_layers", None)
    every = [
        path for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    outer: list[str] = [path for path in every if not any(path.startswith(f"{other}.") for other in every)]
    if len(outer) != 1 or not isinstance(getattr(model, "embeddings", None), nn.Module):
        raise ModelFileError(
            f"config.json: a model of model_type {config.model_type!r} has not the structure of an encoder (a module "
            f"`embeddings` and one list of {count} layers); choose an encoder such as RoBERTa, DeBERTa or ModernBERT"
        )
    return outer[0]


def _max_tokens(embeddings: Any) -> int | None:
    """The rows of the position table, less those that RoBERTa and its kin leave unused up to the padding index."""
    table = getattr(embeddings, "position_embeddings", None)
    if not isinstance(table, nn.Embedding):
        return None
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
