"""`setfit` on the rows of the spec, by its own method: contrastive pairs for the encoder, then a head on its embeddings.

`options.iterations` is the number of positive and of negative pairs made per row; its smallest setting, 1, makes 2 pairs
of every row. What is timed is the whole `train()`; one step is a batch of pairs, so it stands for no batch of rows.
"""

from __future__ import annotations

import tempfile
import time

from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments
from worker import Report, Spec, read_rows, run_worker


def train(spec: Spec) -> Report:
    """Train as the spec says."""
    options, rows = spec.get("options", {}), read_rows(spec)
    data = Dataset.from_dict({"text": [row["text"] for row in rows], "label": [int(row["label"]) for row in rows]})
    model = SetFitModel.from_pretrained(spec["checkpoint"], device=spec.get("device", "cpu"))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            batch_size=spec["batch_size"],
            num_epochs=1,
            num_iterations=options.get("iterations", 1),
            save_strategy="no",
            report_to="none",
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=data)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "examples": len(rows), "pairs": 2 * options.get("iterations", 1) * len(rows)}


if __name__ == "__main__":
    run_worker(train, ("data", "checkpoint", "batch_size"))
