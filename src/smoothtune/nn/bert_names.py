"""What transformers calls the weights of our BERT. Knows nothing of what they do."""

from __future__ import annotations

from smoothtune.config.adaptations import Target

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
HUB_TARGETS: dict[Target, str] = {
    **dict(zip(("query", "key", "value"), _HUB_QKV, strict=True)),
    **{"output": "attention.output.dense", "up": "intermediate.dense", "down": "output.dense"},
}


def hub_names(name: str) -> tuple[str, ...]:
    """The names in transformers of our parameter `name`: three for the fused projection, else one."""
    module, _, leaf = name.rpartition(".")
    if not module.startswith("layers."):
        return (f"{_HUB_NAMES[module]}.{leaf}",)
    _, number, inside = module.split(".", 2)
    modules = _HUB_QKV if inside == "attention.qkv" else (_HUB_LAYER_NAMES[inside],)
    return tuple(f"encoder.layer.{number}.{module}.{leaf}" for module in modules)
