"""`transformers.Trainer` on the rows of the spec: as it comes, or with the `options` that make it fastest.

`options`: `arguments` (of TrainingArguments), `attention` (of the model), `head` (`mean`: mean pooling instead of
BertForSequenceClassification), `pad_multiple`, `threads`, `head_rate` (a rate of its own for the classifier),
`weight_decay` (beside `head_rate`), `seed`, `max_length`, `evaluate` (accuracy on dev). A step is timed from the end of the
one before to its own end, making its batch included.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor
from trainer_modules import build
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import set_seed
from worker import PassClock, Report, Spec, read_rows, run_worker

Row = dict[str, Any]


class Timing(TrainerCallback):
    """Tells a clock of passes and steps."""

    def __init__(self, clock: PassClock) -> None:
        self.clock = clock

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A pass begins."""
        self.clock.begin_pass()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step ended; on a GPU, when its work is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.clock.end_step()


class PairCollator:
    """Rows of two texts to one padded batch: first all first texts, then all second texts."""

    def __init__(self, collator: DataCollatorWithPadding) -> None:
        self.collator = collator

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        """(2B, T) ids and mask, labels (B,)."""
        sides = [{"input_ids": row[side]} for side in ("first", "second") for row in rows]
        return {**self.collator(sides), "labels": torch.tensor([row["labels"] for row in rows])}


class Collator:
    """Rows of one sequence to one padded batch."""

    def __init__(self, collator: DataCollatorWithPadding) -> None:
        self.collator = collator

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        """(B, T) ids, mask and segments; labels (B,)."""
        return dict(self.collator([{key: value for key, value in row.items() if key != "length"} for row in rows]))


def tokenised(spec: Spec, tokenizer: Any, split: str = "train") -> Any:
    """The rows as a `datasets.Dataset` of token ids, with a column `length` (of the longer text)."""
    from datasets import Dataset

    rows, cut = (
        read_rows(spec, split),
        {"truncation": True, "max_length": spec.get("options", {}).get("max_length", 128)},
    )
    labels = [int(row["label"]) for row in rows]
    if spec["reads"] == "separate":
        sides = [tokenizer([row[name] for row in rows], **cut)["input_ids"] for name in ("text_a", "text_b")]
        lengths = [max(len(a), len(b)) for a, b in zip(*sides, strict=True)]
        return Dataset.from_dict({"first": sides[0], "second": sides[1], "labels": labels, "length": lengths})
    if spec["reads"] == "joint":
        encoded = tokenizer([row["text_a"] for row in rows], [row["text_b"] for row in rows], **cut)
    else:
        encoded = tokenizer([row["text"] for row in rows], **cut)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    return Dataset.from_dict({**encoded, "labels": labels, "length": lengths})


def optimiser_of(model: torch.nn.Module, options: dict[str, Any], rate: float) -> torch.optim.Optimizer | None:
    """AdamW with a rate of its own for the classifier, vectors not decayed; None where Trainer's own will do."""
    if "head_rate" not in options:
        return None
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.startswith("classifier."), parameter.ndim > 1), []).append(parameter)
    decay = options.get("weight_decay", 0.0)
    tables = [
        {"params": chosen, "lr": options["head_rate"] if head else rate, "weight_decay": decay if matrix else 0.0}
        for (head, matrix), chosen in groups.items()
    ]
    return torch.optim.AdamW(tables, fused=True)


def train(spec: Spec) -> Report:
    """Train as the spec says."""
    options = spec.get("options", {})
    if "threads" in options:
        torch.set_num_threads(options["threads"])
    set_seed(options.get("seed", 42))
    tokenizer = AutoTokenizer.from_pretrained(spec["checkpoint"])
    padding = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=options.get("pad_multiple"))
    model, clock = build(spec), PassClock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=spec["batch_size"],
            num_train_epochs=spec["passes"],
            save_strategy="no",
            remove_unused_columns=False,
            report_to="none",
            use_cpu=spec.get("device", "cpu") == "cpu",
            seed=options.get("seed", 42),
            **options.get("arguments", {}),
        )
        rows = tokenised(spec, tokenizer)
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=(PairCollator if spec["reads"] == "separate" else Collator)(padding),
            optimizers=(optimiser_of(model, options, arguments.learning_rate), None),
            callbacks=[Timing(clock)],
        )
        outcome = trainer.train()
        found = {**clock.report(len(rows)), "loss_last": outcome.training_loss}
        return {**found, "dev_accuracy": accuracy(trainer, spec, tokenizer)} if options.get("evaluate") else found


def accuracy(trainer: Trainer, spec: Spec, tokenizer: Any) -> float:
    """Share of dev rows answered rightly."""
    answer = trainer.predict(tokenised(spec, tokenizer, "dev"))
    logits = torch.as_tensor(answer.predictions)
    chosen = logits.argmax(dim=1) if logits.ndim == 2 else (logits > 0).long()
    return float((chosen == torch.as_tensor(answer.label_ids)).double().mean())


if __name__ == "__main__":
    run_worker(train, ("data", "labels", "reads", "checkpoint", "batch_size", "passes"))
