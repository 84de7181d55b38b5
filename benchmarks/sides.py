"""The sides of the training comparisons: ours, Trainer as it comes and at its best, CrossEncoderTrainer, and how each is set."""

from __future__ import annotations

from typing import Any

from harness import Side, part_name, read

# glibc gives large blocks back at once and every step faults them in again, unless told to keep them.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}
BEST_ARGUMENTS: dict[str, Any] = {
    "bf16": True,
    "train_sampling_strategy": "group_by_length",
    "optim": "adamw_torch_fused",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": False,
}

UNTUNED, UNTUNED_CUDA = 4, 2

OURS = Side("smoothtune", "ours_train.py", note="`smoothtune.train`, defaults")
AS_IT_COMES = Side(
    "Trainer as it comes",
    "trainer_train.py",
    note="`transformers.Trainer`, default arguments: float32, random order, padded to the batch's longest",
)


def candidates() -> list[Side]:
    """Settings of Trainer that may be its best: attention, padding, allocator and waiting threads, beside bf16 and bucketing."""
    grid = [
        ("sdpa", None, {}),
        ("sdpa", None, {**KEEP_MEMORY, "OMP_WAIT_POLICY": "passive"}),
        ("sdpa", 8, {**KEEP_MEMORY, "OMP_WAIT_POLICY": "passive"}),
        ("eager", None, {**KEEP_MEMORY, "OMP_WAIT_POLICY": "passive"}),
        ("eager", 8, {**KEEP_MEMORY, "OMP_WAIT_POLICY": "passive"}),
        ("eager", 8, KEEP_MEMORY),
    ]
    return [_best(attention, multiple, variables) for attention, multiple, variables in grid]


def _best(attention: str, multiple: int | None, variables: dict[str, str]) -> Side:
    told = ["allocator keeps memory"] if "MALLOC_TRIM_THRESHOLD_" in variables else []
    told += ["threads wait asleep"] if "OMP_WAIT_POLICY" in variables else []
    how = ", ".join(
        [f"{attention} attention", f"padded to {multiple}s" if multiple else "padded to the longest", *told]
    )
    options: dict[str, Any] = {"arguments": BEST_ARGUMENTS, "attention": attention}
    if multiple:
        options["pad_multiple"] = multiple
    note = f"bf16, grouped by length, fused AdamW, no logging; {how}"
    return Side("Trainer at its best", "trainer_train.py", variables=variables, options=options, note=note)


def at_its_best(device: str = "cpu") -> Side:
    """The candidate that `tune_trainer.py` found fastest on this machine; untuned, the fifth, and on a GPU the third."""
    tuned = read(part_name("trainer_best", device))
    untuned = UNTUNED if device == "cpu" else UNTUNED_CUDA
    return candidates()[untuned if tuned is None else int(tuned["chosen"])]


def cross_encoder(device: str = "cpu") -> Side:
    """CrossEncoderTrainer in bf16."""
    return Side(
        "CrossEncoderTrainer",
        "cross_encoder_train.py",
        environment="sentence-transformers",
        variables=at_its_best(device).variables,
        options={"arguments": {"bf16": True, "logging_strategy": "no", "disable_tqdm": True}},
        note="`sentence-transformers`, bf16, no logging, process settings of Trainer at its best",
    )


SETFIT = Side(
    "setfit", "setfit_train.py", environment="setfit", options={"iterations": 1},
    note="its own method: 2 contrastive pairs per row, then a head on the embeddings; the whole `train()`",
)  # fmt: skip
