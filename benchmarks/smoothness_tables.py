"""How far answers move under dropout alone, a random and an adversarial perturbation: presets, and radii 1e-5 to 1.

Run: python benchmarks/smoothness_tables.py [--steps 300] [--batches 4]. On batches of 32 training rows of each task, in training
mode, before and after `--steps` steps of the quick recipe on all rows, in float32 and bfloat16. What `dropout`, `random`,
`adversarial`, `norm` and `surviving` are is said in smoothtune.objective.measuring. `signs` is random too: of every token the
max-norm of the adversarial perturbation with random signs, so that the 2-norm is the same as well. For float32 the adversarial
divergence is told in float64 too: the same perturbation and masks through the model in float64. `rounding` is what the dtype of
the forward pass does by itself, in eval mode. Writes results/smoothness_tables.json.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import progress, save, settings_of
from little_data_cells import quick_table, write_tasks
from looking import BATCH, SEED, first_batches, quick_model, step_module
from options import parser_of
from rows import SOURCES, read_rows, what_data
from smoothtune.nn.model import MultiTaskModel
from smoothtune.objective.measuring import dropout_part, perturbation_parts, search_of
from smoothtune.runtime.device import computing_in, keep_memory_mapped, set_threads
from smoothtune.runtime.random import Pass, torch_stream
from smoothtune.training.step import StepModule
from smoothtune.types import Batch, Kind

RADII = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
PRESETS = ("wang", "paper", "mtdnn", "exact", "cheap")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Batches = Mapping[str, list[Batch]]


def tables() -> dict[str, dict[str, Any]]:
    """The regularisers that are looked through: every preset, and `exact` with each radius."""
    found: dict[str, dict[str, Any]] = {preset: {"kind": "smoothness", "preset": preset} for preset in PRESETS}
    return found | {f"{radius:g}": at_radius(radius) for radius in RADII}


def at_radius(radius: float) -> dict[str, Any]:
    """`exact` with another radius; its noise and its step grow with it."""
    return {"kind": "smoothness", "preset": "exact", "radius": radius}


def float64_divergence(kind: Kind, a: Tensor, b: Tensor, span: float) -> float:
    """Mean over the examples of the divergence of a task kind, straight from its definition, in float64."""
    a, b = a.double(), b.double()
    if kind == "regression":
        return float(((a - b) / span).square().mean())
    if kind == "binary":
        return float(((a.sigmoid() - b.sigmoid()) * (a - b)).mean())
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    return float(((p.exp() - q.exp()) * (p - q)).sum(-1).mean())


def random_signs(d: Tensor, number: int) -> Tensor:
    """Noise (R, T, D) whose every entry is the max-norm of its token in `d`, with a random sign."""
    draws = torch.empty_like(d).normal_(generator=torch_stream(SEED, "signs", number))
    return draws.sign() * d.abs().amax(-1, keepdim=True)


def looked_through(module: StepModule, double: StepModule | None, batch: Batch, number: int) -> dict[str, float]:
    """All numbers of the module's one regulariser on one batch."""
    (regulariser,) = module.regularisers
    current = Pass(SEED, "tables", number, update_statistics=False)
    search, look = search_of(regulariser), module.looked(batch, current, regulariser, 1.0)
    assert search is not None
    found = perturbation_parts(look, search, module.dtype) | dropout_part(look)
    again = module.looked(batch, current, regulariser, 1.0)  # draws the same, so that the search finds the same
    d = search.perturbation(again)
    with torch.no_grad():
        moved = again.logits_of(random_signs(d, number), layer=search.layer)
        found["signs"] = float(again.divergence(moved, again.logits).double().mean())
    if double is not None:
        found["adversarial_float64"] = in_float64(double, batch, current, d, search.layer)
    return found


@torch.no_grad()
def in_float64(double: StepModule, batch: Batch, current: Pass, d: Tensor, layer: int) -> float:
    """The divergence that the perturbation (R, T, D) makes in a model of float64, with the masks of `current`."""
    (regulariser,) = double.regularisers
    look = double.looked(batch, current, regulariser, 1.0)
    node = double.model.tasks[batch.task]
    return float64_divergence(node.kind, look.logits_of(d.double(), layer=layer), look.logits, node.span)


def rounding(model: MultiTaskModel, double: MultiTaskModel, batches: Iterable[Batch], dtype: torch.dtype) -> Any:
    """Largest logit error of a dtype's forward pass against float64, and the divergence that these errors make."""
    errors, divergences = [], []
    for batch in batches:
        with torch.no_grad(), computing_in(dtype, torch.device("cpu")):
            here = model.eval()(batch).logits.double()
        with torch.no_grad():
            there = double.eval()(batch).logits
        node = model.tasks[batch.task]
        errors.append(float((here - there).abs().max()))
        divergences.append(float64_divergence(node.kind, here, there, node.span))
    return {"logit": max(errors), "divergence": statistics.fmean(divergences)}


def of_model(model: MultiTaskModel, batches: Batches, state: str) -> dict[str, Any]:
    """All numbers of one model: by dtype, task, and preset or radius; means over the batches."""
    double = copy.deepcopy(model).double()
    found: dict[str, Any] = {}
    for dtype_name, dtype in DTYPES.items():
        found[dtype_name] = {
            task: {
                "rounding": rounding(model, double, parts, dtype),
                "rows": rows_of(model, double if dtype == torch.float32 else None, parts, dtype),
            }
            for task, parts in batches.items()
        }
        progress(f"smoothness tables: {state}, {dtype_name}")
    return found


def rows_of(
    model: MultiTaskModel, double: MultiTaskModel | None, batches: Iterable[Batch], dtype: torch.dtype
) -> dict[str, dict[str, float]]:
    """Every preset and radius: means over the batches."""
    found = {}
    for name, table in tables().items():
        module = step_module(model.train(), dtype=dtype, regularisers=[table])
        exact = None
        if double is not None:
            exact = step_module(double.train(), dtype=torch.float32, regularisers=[table])
        every = [looked_through(module, exact, batch, number) for number, batch in enumerate(batches)]
        found[name] = {key: statistics.fmean(one[key] for one in every) for key in every[0]}
    return found


def fine_tuned(data_dir: Path | None, steps: int, rows: int | None) -> MultiTaskModel:
    """The quick recipe after `steps` steps."""
    import smoothtune

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = {task: read_rows(source, data_dir)[:rows] for task, source in SOURCES.items()}
        write_tasks(folder, train)
        run = smoothtune.train(quick_table(folder, steps=steps, seed=SEED), run_dir=folder / "run")
        return run.model().network


def main() -> None:
    """Measure and save."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batches", type=int, default=4, help="batches of 32 rows per task")
    parser.add_argument("--rows", type=int, help="training rows per task, default: all")
    options = parser.parse_args()
    set_threads(options.threads)
    keep_memory_mapped()
    batches = {task: first_batches(task, options.data_dir, options.batches) for task in SOURCES}
    states = {"before": of_model(quick_model(), batches, "before")}
    states["after"] = of_model(fine_tuned(options.data_dir, options.steps, options.rows), batches, "after")
    settings = settings_of(
        data=what_data(options.data_dir), threads=torch.get_num_threads(), steps=options.steps, batch=BATCH,
        batches=options.batches,
    )  # fmt: skip
    save("smoothness_tables", {**settings, "states": states})


if __name__ == "__main__":
    main()
