"""Our own BERT encoder (Devlin et al., 2019, section 3), without a pooler.

It reads any checkpoint of the BERT architecture. It knows nothing of files, tasks or training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smoothtune.config.adaptations import Target
from smoothtune.errors import ModelFileError
from smoothtune.nn import fused
from smoothtune.nn.adaptation import Adaptations, in_layers
from smoothtune.nn.attention import reads_ragged
from smoothtune.nn.bert_layers import ACTIVATIONS, BertEmbeddings, BertLayer
from smoothtune.nn.bert_names import HUB_TARGETS, hub_names
from smoothtune.nn.bert_settings import settings_of
from smoothtune.nn.dropout import name_places
from smoothtune.nn.encoder import Encoded, Encoder, fitting, matched_state
from smoothtune.nn.packing import Packing
from smoothtune.types import Tokens

_BARE = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.GELU, nn.ReLU)


def native_obstacle(architecture: Mapping[str, Any]) -> str | None:
    """Why this BERT cannot be built from `architecture`, as `key is value` with what it can do; None if it can.

    Raises `ModelFileError` for values that no BERT can have.
    """
    settings = settings_of(architecture)
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    if settings.get("model_type", "bert") != "bert":
        return f"model_type is {settings['model_type']!r}, not 'bert'"
    if settings.get("position_embedding_type", "absolute") != "absolute":
        return f"position_embedding_type is {settings['position_embedding_type']!r}, not 'absolute'"
    if settings["hidden_act"] not in tuple(ACTIVATIONS):  # it may be of any type
        return f"hidden_act is {settings['hidden_act']!r}, not one of {', '.join(ACTIVATIONS)}"
    if settings.get("is_decoder"):
        return "is_decoder is true, but an encoder reads in both directions"
    return f"hidden_size {width} is not a multiple of num_attention_heads {heads}" if width % heads else None


class BertEncoder(Encoder):
    """BERT with fresh weights (normal, of the checkpoint's `initializer_range`, drawn from torch's global generator).

    `architecture` is the checkpoint's config.json as a dict; `dropout` and `attention_dropout` override its rates.
    Raises `ModelFileError` for an architecture this class does not have.
    """

    layers_path = "layers"
    begins_anywhere = True

    def __init__(
        self, architecture: Mapping[str, Any], dropout: float | None = None, attention_dropout: float | None = None
    ) -> None:
        super().__init__()
        obstacle = native_obstacle(architecture)
        if obstacle is not None:
            raise ModelFileError(f'config.json: {obstacle}; set encoder.implementation = "transformers" for this one')
        settings = settings_of(architecture)
        rate = settings["hidden_dropout_prob"] if dropout is None else dropout
        attention_rate = settings["attention_probs_dropout_prob"] if attention_dropout is None else attention_dropout
        self.architecture = dict(architecture)
        self.width = settings["hidden_size"]
        self.depth = settings["num_hidden_layers"]
        self.head_size = self.width // settings["num_attention_heads"]
        self.max_tokens = settings["max_position_embeddings"]
        self.embeddings = BertEmbeddings(settings, rate)
        self.layers = nn.ModuleList(BertLayer(settings, rate, attention_rate) for _ in range(self.depth))
        name_places(self)
        _draw_weights(self, settings["initializer_range"])

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
        """See `Encoder.forward`."""
        self.check(tokens, layer)
        first = 0 if start is None else layer
        change = None if perturbation is None else fitting(perturbation, tokens, self.width)
        dtype = self._kernel_dtype()
        if dtype is None and not self._reads_ragged():
            x = self.embeddings(tokens) if start is None else start
            changes = {} if change is None else {layer: change}
            tasks = in_layers(() if adaptations is None else adaptations.spans(), self.depth)
            x, inputs = self._through(
                x, first, changes, keep_inputs, lambda block, n, x: block(x, tokens.mask, tasks[n])
            )
            return Encoded(x.masked_fill(~tokens.mask.unsqueeze(2), 0), inputs)  # as unpacked tokens are
        # Rows that are not wanted have no tokens: places, and with them dropout masks, stay those of the whole batch.
        packing = Packing.of(tokens.mask if rows is None else tokens.mask & rows[:, None])
        x = self._embedded(tokens, packing, dtype) if start is None else packing.pack(start)
        changes = {} if change is None else {layer: packing.pack(change)}
        tasks = in_layers(() if adaptations is None else adaptations.packed_spans(packing), self.depth)
        turn = BertLayer.ragged if dtype is None else BertLayer.packed
        x, inputs = self._through(x, first, changes, keep_inputs, lambda block, n, x: turn(block, x, packing, tasks[n]))
        return Encoded(packing.unpack(x), tuple(packing.unpack(part) for part in inputs))

    def _through(
        self,
        x: Tensor,
        first: int,
        changes: Mapping[int, Tensor],
        keep_inputs: bool,
        turn: Callable[[BertLayer, int, Tensor], Tensor],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Layers `first` to the last, each by `turn`; `changes` are added to the input of their layer."""
        inputs = []
        for number, block in enumerate(self.layers):
            if number < first:
                continue
            if number in changes:
                x = x + changes[number].to(x.dtype)
            if keep_inputs:
                inputs.append(x)
            assert isinstance(block, BertLayer)
            x = turn(block, number, x)
        return x, tuple(inputs)

    def give_sparse_gradients(self, wanted: bool) -> None:
        """See `Encoder.give_sparse_gradients`."""
        self.embeddings.sparse_gradient = wanted

    def _kernel_dtype(self) -> torch.dtype | None:
        """The dtype in which the kernels compute this pass, or None where the plain modules do."""
        weight = self.embeddings.word.weight
        if weight.device.type != "cpu" or weight.dtype != torch.float32 or self.head_size % 8 or not fused.available():
            return None
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        return dtype if dtype in (torch.float32, torch.bfloat16) and self._bare() else None

    def _bare(self) -> bool:
        """Whether every part is the module that was built, without hooks: others must be called, not read."""
        parts = [self.embeddings.word, self.embeddings.norm]
        for block in self.layers:
            assert isinstance(block, BertLayer)
            parts += block.attention.qkv, block.attention.output, block.attention_norm
            parts += block.up, block.activation, block.down, block.output_norm
        return all(type(part) in _BARE and not (part._forward_hooks or part._forward_pre_hooks) for part in parts)

    def _reads_ragged(self) -> bool:
        """Whether torch computes this pass on packed tokens: on a recent GPU, in 16-bit floats, without attention dropout."""
        device = self.embeddings.word.weight.device
        if device.type != "cuda" or not torch.is_autocast_enabled("cuda") or not reads_ragged():
            return False
        if torch.cuda.get_device_capability(device) < (8, 0) or self.head_size % 8 or self.head_size > 256:
            return False
        first = self.layers[0]
        assert isinstance(first, BertLayer)
        return not self.training or first.attention.dropout.rate == 0

    def _embedded(self, tokens: Tokens, packing: Packing, dtype: torch.dtype | None) -> Tensor:
        """The input of layer 0 for packed tokens, by kernels in `dtype` or (None) by torch, (N, D)."""
        if dtype is None:
            return self.embeddings.ragged(tokens, packing)
        return self.embeddings.packed(tokens, packing, dtype)

    def weight_of(self, layer: int, target: Target) -> Tensor:
        """See `Encoder.weight_of`."""
        return self._hub_views()[f"{self.hub_path(layer, target)}.weight"]

    def hub_path(self, layer: int, target: Target) -> str:
        """See `Encoder.hub_path`."""
        return f"encoder.layer.{layer}.{HUB_TARGETS[target]}"

    def hub_state(self) -> dict[str, Tensor]:
        """See `Encoder.hub_state`."""
        return {hub_name: view.clone() for hub_name, view in self._hub_views().items()}

    @torch.no_grad()
    def load_hub_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Encoder.load_hub_state`."""
        views = self._hub_views()
        fitting = matched_state(state, views, prefix="bert.", layers_path="encoder.layer")
        for hub_name, view in views.items():
            view.copy_(fitting[hub_name])

    def _hub_views(self) -> dict[str, Tensor]:
        """Detached views of the weights, under transformers' names."""
        views: dict[str, Tensor] = {}
        for name, parameter in self.named_parameters():
            names = hub_names(name)
            views.update(zip(names, parameter.detach().chunk(len(names)), strict=True))
        return views


def _draw_weights(model: nn.Module, spread: float) -> None:
    """Weights as BERT draws them: normal, biases zero, LayerNorm left at one and zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=spread)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
