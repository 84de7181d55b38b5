"""The `transformers` text-classification pipeline in batches. `options`: `batch_size`, `dtype`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from predict_clock import Texts, timed
from transformers import pipeline
from worker import Report, Spec, run_worker


def predict(spec: Spec) -> Report:
    """Answer as the spec says."""
    options = spec.get("options", {})

    def load() -> Callable[[Texts], list[int]]:
        answer = pipeline(
            "text-classification",
            model=spec["peer_model"],
            device=spec.get("device", "cpu"),
            batch_size=options.get("batch_size", 32),
            dtype=getattr(torch, options.get("dtype", "float32")),
        )

        def labels(texts: Texts) -> list[int]:
            inputs = [text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]} for text in texts]
            return [
                int(found["label"].removeprefix("LABEL_")) for found in answer(inputs, truncation=True, max_length=128)
            ]

        return labels

    return timed(spec, load)


if __name__ == "__main__":
    run_worker(predict, ("texts", "peer_model"))
