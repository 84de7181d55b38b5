"""`sentence-transformers`' CrossEncoderTrainer on the pairs of the spec (one sequence per pair, binary cross-entropy).

`options`: `arguments` of CrossEncoderTrainingArguments. A step is timed from the end of the one before to its own end.
"""

from __future__ import annotations

import tempfile
from typing import Any

from datasets import Dataset
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from transformers import TrainerCallback
from worker import PassClock, Report, Spec, read_rows, run_worker


class Timing(TrainerCallback):
    """Tells a clock of passes and steps."""

    def __init__(self, clock: PassClock) -> None:
        self.clock = clock

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A pass begins."""
        self.clock.begin_pass()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step ended."""
        self.clock.end_step()


def train(spec: Spec) -> Report:
    """Train as the spec says."""
    options, clock = spec.get("options", {}), PassClock()
    rows, device = read_rows(spec), spec.get("device", "cpu")
    data = Dataset.from_dict(
        {
            "text_a": [row["text_a"] for row in rows],
            "text_b": [row["text_b"] for row in rows],
            "label": [float(row["label"]) for row in rows],
        }
    )
    model = CrossEncoder(spec["checkpoint"], num_labels=1, max_length=options.get("max_length", 128), device=device)
    with tempfile.TemporaryDirectory() as folder:
        arguments = CrossEncoderTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=spec["batch_size"],
            num_train_epochs=spec["passes"],
            save_strategy="no",
            report_to="none",
            use_cpu=device == "cpu",
            **options.get("arguments", {}),
        )
        outcome = CrossEncoderTrainer(
            model=model,
            args=arguments,
            train_dataset=data,
            loss=BinaryCrossEntropyLoss(model),
            callbacks=[Timing(clock)],
        ).train()
    return {**clock.report(len(rows)), "loss_last": outcome.training_loss}


if __name__ == "__main__":
    run_worker(train, ("data", "checkpoint", "batch_size", "passes"))
