"""`sentence-transformers`' `encode`: embeddings, no labels. `options`: `batch_size`, `dtype`."""

from __future__ import annotations

from collections.abc import Callable

from predict_clock import Texts, timed
from sentence_transformers import SentenceTransformer
from worker import Report, Spec, run_worker


def predict(spec: Spec) -> Report:
    """Encode as the spec says."""
    options = spec.get("options", {})

    def load() -> Callable[[Texts], None]:
        model = SentenceTransformer(
            spec["checkpoint"],
            device=spec.get("device", "cpu"),
            model_kwargs={"dtype": options.get("dtype", "float32")},
        )
        model.max_seq_length = 128

        def encode(texts: Texts) -> None:
            model.encode(texts, batch_size=options.get("batch_size", 32), show_progress_bar=False)

        return encode

    return timed(spec, load)


if __name__ == "__main__":
    run_worker(predict, ("texts", "checkpoint"))
