"""What every regulariser costs: whole training steps on one batch of 32 SST texts, in one process, variants in turn.

Run: python benchmarks/smoothness_cost.py [NAME ...] [--repetitions 60]. All variants share one model and one optimiser; a step
is clean pass, term, backward, clipping and AdamW, at a rate so small that the model stays what it is. With `every = k` a turn
is k steps and its time their mean. `smart-pytorch` is the package of that name around transformers' BERT, see smart_side.py.
Names choose variants (`plain` is always among them). Writes results/smoothness_cost.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from harness import progress, save, settings_of
from intervals import ratio_of_medians
from looking import SEED, middle_batch, quick_model, step_module
from options import parser_of
from rows import what_data
from smart_side import SmartSide
from smoothtune.config.regularisers import RegulariserOptions
from smoothtune.config.stage import Rates, Stage
from smoothtune.nn.model import MultiTaskModel
from smoothtune.runtime.device import keep_memory_mapped, pick_dtype, set_threads
from smoothtune.training.adamw import KernelAdamW, clip_gradients
from smoothtune.training.optimiser import build_optimiser, parameter_groups
from smoothtune.training.step import StepName
from smoothtune.types import Batch

WARM = 3
STAGE = Stage(learning_rate=Rates(encoder=1e-9, trunks=1e-9, outputs=1e-9))
EXACT = {"kind": "smoothness", "preset": "exact"}
LAYERS, FRACTIONS = ("middle", 4, 5), (0.5, 0.25)
EVERY = (2, 5)  # 4 would cost 1 + (8/3 - 1) / 4 = 1.42 plain steps by operations, above what `cheap` may cost
PRESETS = ("wang", "paper", "mtdnn", "exact", "cheap")
PEERS = {"smart-pytorch, bf16": True, "smart-pytorch, float32": False}
FLOAT32 = "float32"
Step = Callable[[], None]


def tables() -> dict[str, dict[str, Any]]:
    """One regulariser per variant, by what the page calls it."""
    found: dict[str, dict[str, Any]] = {kind: {"kind": kind} for kind in ("r_drop", "r3f", "vat", "freelb", "proximal")}
    found |= {preset: {"kind": "smoothness", "preset": preset} for preset in PRESETS}
    found |= {f"exact, layer = {layer}": {**EXACT, "layer": layer} for layer in LAYERS}
    found |= {f"exact, fraction = {fraction}": {**EXACT, "fraction": fraction} for fraction in FRACTIONS}
    found |= {f"exact, every = {every}": {**EXACT, "every": every} for every in EVERY}
    for layer, fraction in product(LAYERS, FRACTIONS):
        found[f"exact, layer = {layer}, fraction = {fraction}"] = {**EXACT, "layer": layer, "fraction": fraction}
    return found | {"exact, float32": {**EXACT, "precision": FLOAT32}}


class OurSteps:
    """Training steps of ours on one batch; all variants share the model and the optimiser."""

    def __init__(self, model: MultiTaskModel, batch: Batch, dtype: torch.dtype) -> None:
        self._model = model.train()
        self._batch = batch
        self._dtype = dtype
        plain = step_module(model, dtype=dtype)
        chosen = dict(model.named_parameters())
        self._optimiser = build_optimiser(parameter_groups(model, plain.weighting, chosen, STAGE))
        model.encoder.give_sparse_gradients(isinstance(self._optimiser, KernelAdamW))
        self._trained = list(chosen.values())
        self._number = 0

    def variant(self, *regularisers: dict[str, Any], dtype: torch.dtype | None = None) -> Step:
        """A training step with these regularisers."""
        module = step_module(
            self._model, dtype=self._dtype if dtype is None else dtype, regularisers=regularisers
        ).train()

        def step() -> None:
            self._number += 1
            progress = 0.5 + 1e-6 * self._number  # a moving average moves only when it has gone on
            found = module(self._batch, StepName(SEED, "cost", self._number, 0, progress))
            total = sum(value for part, value in found.items() if part != "unweighted")
            assert isinstance(total, torch.Tensor)
            total.backward()  # type: ignore[no-untyped-call]
            clip_gradients(self._optimiser, STAGE.gradient_clip)
            self._optimiser.step()
            for parameter in self._trained:
                parameter.grad = None

        return step


def in_turn(variants: Mapping[str, tuple[Step, int]], repetitions: int, warm: int = WARM) -> dict[str, list[float]]:
    """Seconds of a step of every variant, turn by turn; a variant is its step and how many of them are a turn."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(warm + repetitions):
        for name, (step, steps) in variants.items():
            began = time.perf_counter()
            for _ in range(steps):
                step()
            if turn >= warm:
                seconds[name].append((time.perf_counter() - began) / steps)
        progress(f"smoothness cost: turn {turn + 1} of {warm + repetitions}")
    return seconds


def chosen_variants(steps: OurSteps, batch: Batch, names: list[str]) -> tuple[dict[str, tuple[Step, int]], list[str]]:
    """Plain steps and those of the variants named (all without names), and why a peer is missing."""
    makers: dict[str, Callable[[], Step]] = {"plain": steps.variant}
    makers |= {name: partial(steps.variant, table) for name, table in tables().items()}
    makers["plain, float32"] = partial(steps.variant, dtype=torch.float32)
    makers |= {name: partial(_smart_step, batch, bfloat16) for name, bfloat16 in PEERS.items()}
    unknown = set(names) - set(makers)
    if unknown:
        raise SystemExit(f"no such variant: {', '.join(sorted(unknown))}; there are: {', '.join(makers)}")
    variants, missing = {}, []
    for name, maker in makers.items():
        if not names or name in {"plain", *names}:
            try:
                variants[name] = maker(), _steps_of_a_turn(tables().get(name))
            except ImportError as error:
                missing.append(f"{name}: {error}")
    return variants, missing


def _steps_of_a_turn(table: Mapping[str, Any] | None) -> int:
    """As many as lie from one look to the next, presets resolved."""
    return 1 if table is None else int(TypeAdapter(RegulariserOptions).validate_python(table).every)


def _smart_step(batch: Batch, bfloat16: bool) -> Step:
    return SmartSide(batch, bfloat16=bfloat16).step


def judged(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Median, and the ratio to our plain step and (peers) to our `exact` step."""
    rows: dict[str, dict[str, Any]] = {}
    for name, values in seconds.items():
        rows[name] = {
            "seconds": [round(value, 6) for value in values],
            "median": statistics.median(values),
            "over_plain": ratio_of_medians(values, seconds["plain"]).to_json(),
        }
        if name in PEERS and "exact" in seconds:
            rows[name]["over_exact"] = ratio_of_medians(values, seconds["exact"]).to_json()
    return rows


def main() -> None:
    """Measure and save."""
    parser = parser_of(__doc__, repetitions=60)
    parser.add_argument("names", nargs="*", help="variants, default: all")
    options = parser.parse_args()
    set_threads(options.threads)
    keep_memory_mapped()
    found = measure(options.data_dir, options.names, options.repetitions)
    settings = settings_of(
        data=what_data(options.data_dir), threads=torch.get_num_threads(), repetitions=options.repetitions, warm=WARM
    )
    save("smoothness_cost", {**settings, **found})


def measure(data_dir: Path | None, names: list[str], repetitions: int, warm: int = WARM) -> dict[str, Any]:
    """What is kept: the batch, the dtype, the variants, and why one is missing."""
    batch, dtype = middle_batch("sst", data_dir), pick_dtype("auto", torch.device("cpu"))
    variants, missing = chosen_variants(OurSteps(quick_model(), batch, dtype), batch, names)
    return {
        "tokens": int(batch.tokens.mask.sum()),
        "longest": int(batch.tokens.mask.sum(dim=1).max()),
        "dtype": str(dtype).removeprefix("torch."),
        "variants": judged(in_turn(variants, repetitions, warm)),
        "missing": missing,
    }


if __name__ == "__main__":
    main()
