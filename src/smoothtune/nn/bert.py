"""Our own BERT encoder (Devlin et al., 2019, section 3), without a pooler.

It reads any checkpoint of the BERT architecture. It knows nothing of files, tasks or training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smoothtune.config.adaptations import Target
from smoothtune.errors import ModelFileError, UsageError
from smoothtune.nn import fused
from smoothtune.nn.adaptation import UNCHANGED, Adaptations, InLayer, in_layers
from smoothtune.nn.adapters import Site
from smoothtune.nn.attention import SelfAttention, reads_ragged
from smoothtune.nn.dropout import Dropout, name_places
from smoothtune.nn.encoder import Encoded, Encoder, fitting, matched_state
from smoothtune.nn.packing import Packing
from smoothtune.nn.products import product
from smoothtune.types import Tokens

# What BERT-base has; config.json files of early checkpoints leave some of these out.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
}
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
}
_BARE = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.GELU, nn.ReLU)
_KERNEL_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}
_HUB_NAMES = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.segment": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
}
_HUB_LAYER_NAMES = {
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}
_HUB_QKV = tuple(f"attention.self.{part}" for part in ("query", "key", "value"))
_HUB_TARGETS: dict[Target, str] = {
    **dict(zip(("query", "key", "value"), _HUB_QKV, strict=True)),
    **{"output": "attention.output.dense", "up": "intermediate.dense", "down": "output.dense"},
}


def native_obstacle(architecture: Mapping[str, Any]) -> str | None:
    """Why this BERT cannot be built from `architecture`, as `key is value` with what it can do; None if it can."""
    settings = {**_DEFAULTS, **architecture}
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    if settings.get("model_type", "bert") != "bert":
        return f"model_type is {settings['model_type']!r}, not 'bert'"
    if settings.get("position_embedding_type", "absolute") != "absolute":
        return f"position_embedding_type is {settings['position_embedding_type']!r}, not 'absolute'"
    if settings["hidden_act"] not in _ACTIVATIONS:
        return f"hidden_act is {settings['hidden_act']!r}, not one of {', '.join(_ACTIVATIONS)}"
    if settings.get("is_decoder"):
        return "is_decoder is true, but an encoder reads in both directions"
    return f"hidden_size {width} is not a multiple of num_attention_heads {heads}" if width % heads else None


class BertEmbeddings(nn.Module):
    """Word + position + segment, normalised, with dropout.

    With `sparse_gradient`, which an optimiser that takes it sets, the kernels give the word table a sparse gradient.
    """

    def __init__(self, settings: Mapping[str, Any], dropout: float) -> None:
        super().__init__()
        width = settings["hidden_size"]
        self.word = nn.Embedding(settings["vocab_size"], width)
        self.position = nn.Embedding(settings["max_position_embeddings"], width)
        self.segment = nn.Embedding(settings["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps=settings["layer_norm_eps"])
        self.dropout = Dropout(dropout)
        self.sparse_gradient = False

    def forward(self, tokens: Tokens) -> Tensor:
        """(R, T) token ids to (R, T, D). Without segments, or in a checkpoint with one, all tokens are of segment 0."""
        segmented = tokens.segments is not None and self.segment.num_embeddings > 1
        segment = self.segment(tokens.segments) if segmented else self.segment.weight[0]
        places = self.position.weight[: tokens.input_ids.shape[1]] + segment
        embedded: Tensor = self.dropout(self.norm(self.word(tokens.input_ids) + places))
        return embedded

    def ragged(self, tokens: Tokens, packing: Packing) -> Tensor:
        """The same for packed tokens by torch, (N, D)."""
        segmented = tokens.segments is not None and self.segment.num_embeddings > 1
        kinds = packing.pack(tokens.segments) if segmented and tokens.segments is not None else None
        segment = self.segment.weight[0] if kinds is None else self.segment(kinds)
        places = self.position(packing.within) + segment
        embedded: Tensor = self.dropout(self.norm(self.word(packing.pack(tokens.input_ids)) + places))
        return embedded

    def packed(self, tokens: Tokens, packing: Packing, dtype: torch.dtype) -> Tensor:
        """The same for packed tokens, (N, D) in `dtype`."""
        segmented = tokens.segments is not None and self.segment.num_embeddings > 1
        segments = packing.pack(tokens.segments) if segmented and tokens.segments is not None else None
        tables = (self.word.weight, self.position.weight, self.segment.weight)
        drop = self.dropout.drop(packing.places)
        ids = packing.pack(tokens.input_ids)
        _check_rows(ids, self.word, "token id", "take the tokenizer that was saved with this checkpoint")
        if segments is not None:
            _check_rows(segments, self.segment, "segment", "number the texts of a pair 0 and 1")
        return fused.embedding(tables, self.norm, ids, segments, packing, drop, dtype, sparse=self.sparse_gradient)


class BertLayer(nn.Module):
    """Self-attention, then a two-layer MLP; each with dropout, a residual sum and LayerNorm after it."""

    def __init__(self, settings: Mapping[str, Any], dropout: float, attention_dropout: float) -> None:
        super().__init__()
        width, inner, eps = settings["hidden_size"], settings["intermediate_size"], settings["layer_norm_eps"]
        self.attention = SelfAttention(width, settings["num_attention_heads"], attention_dropout)
        self.attention_drop = Dropout(dropout)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.up = nn.Linear(width, inner)
        self.activation = _ACTIVATIONS[settings["hidden_act"]]()
        self.kernel_activation = _KERNEL_ACTIVATIONS[settings["hidden_act"]]
        self.down = nn.Linear(inner, width)
        self.output_drop = Dropout(dropout)
        self.output_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, mask: Tensor, change: InLayer = UNCHANGED) -> Tensor:
        """`x` (R, T, D) and `mask` (R, T) bool to (R, T, D), with the tasks' `change` of this layer."""
        return self._after(x, self.attention(x, mask, change), change)

    def ragged(self, x: Tensor, packing: Packing, change: InLayer = UNCHANGED) -> Tensor:
        """The same for packed tokens without attention dropout, by torch, (N, D) to (N, D)."""
        return self._after(x, self.attention.ragged(x, packing, change), change)

    def _after(self, x: Tensor, attended: Tensor, change: InLayer) -> Tensor:
        x = self.attention_norm(x + self.attention_drop(change.adapted("attention", attended)))
        a = self.activation(change.low_rank("up", x, self.up(x)))
        y = change.adapted("output", change.low_rank("down", a, self.down(a)))
        normed: Tensor = self.output_norm(x + self.output_drop(y))
        return normed

    def packed(self, x: Tensor, packing: Packing, change: InLayer = UNCHANGED) -> Tensor:
        """The same for packed tokens, (N, D) to (N, D)."""
        y = self.attention.packed(x, packing, change)
        y, bias = _adapted("attention", y, self.attention.output.bias, change)
        x = fused.residual_norm(y, bias, x, self.attention_norm, self.attention_drop.drop(packing.places))
        u = change.low_rank("up", x, product(x, self.up.weight))
        a = fused.activation(u, self.up.bias, self.kernel_activation)
        y = change.low_rank("down", a, product(a, self.down.weight))
        y, bias = _adapted("output", y, self.down.bias, change)
        return fused.residual_norm(y, bias, x, self.output_norm, self.output_drop.drop(packing.places))


def _adapted(site: Site, y: Tensor, bias: Tensor, change: InLayer) -> tuple[Tensor, Tensor]:
    """A product `y` (N, D) without its `bias` (D,), through the adapters at `site`, and the bias that is left to add."""
    if not change.adapts:
        return y, bias
    return change.adapted(site, y + bias.to(y.dtype)), torch.zeros_like(bias)


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
        settings = {**_DEFAULTS, **architecture}
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
            return Encoded(
                *self._through(x, first, changes, keep_inputs, lambda block, n, x: block(x, tokens.mask, tasks[n]))
            )
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
        return f"encoder.layer.{layer}.{_HUB_TARGETS[target]}"

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
            names = _hub_names(name)
            views.update(zip(names, parameter.detach().chunk(len(names)), strict=True))
        return views


def _check_rows(index: Tensor, table: nn.Embedding, what: str, remedy: str) -> None:
    """Raise `UsageError` where `index` (N,) int64 names a row that `table` does not have: kernels do not look."""
    if index.dtype != torch.int64:
        raise UsageError(f"encoder: a {what} is {index.dtype}, expected torch.int64")
    low, high = (int(bound) for bound in index.aminmax())
    if low < 0 or high >= table.num_embeddings:
        wrong = low if low < 0 else high
        raise UsageError(f"encoder: {what} {wrong} is not in its table of {table.num_embeddings:,} rows; {remedy}")


def _hub_names(name: str) -> tuple[str, ...]:
    """The names in transformers of our parameter `name`: three for the fused projection, else one."""
    module, _, leaf = name.rpartition(".")
    if not module.startswith("layers."):
        return (f"{_HUB_NAMES[module]}.{leaf}",)
    _, number, inside = module.split(".", 2)
    modules = _HUB_QKV if inside == "attention.qkv" else (_HUB_LAYER_NAMES[inside],)
    return tuple(f"encoder.layer.{number}.{module}.{leaf}" for module in modules)


def _draw_weights(model: nn.Module, spread: float) -> None:
    """Weights as BERT draws them: normal, biases zero, LayerNorm left at one and zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=spread)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
