"""Three tasks of different size trained together by default: what each gains over its probe, on dev and on its test set.

Run: python benchmarks/several_tasks.py [--seeds 3] [--threads N], with the data folder of bench-default. 800 rows of
customer-reviews, 300 of mrpc and 120 of sts-gloss-mt train, a tenth of them as the dev part. Beside the run stands each task
trained alone by default.
Writes results/several_tasks.json.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from default_data import rows_of, task_of
from harness import progress, save, settings_of
from options import parser_of
from rows import data_folder, write_rows
from sources import package_code

TASKS = {"reviews": ("customer-reviews", 800), "pairs": ("mrpc", 300), "similarity": ("sts-gloss-mt", 120)}


def write_tasks(folder: Path, data: Path, seed: int) -> dict[str, dict[str, Any]]:
    """The training and test files of the tasks, and their tables."""
    tables: dict[str, dict[str, Any]] = {}
    for name, (source, count) in TASKS.items():
        train, test = rows_of(data, source, count, seed=seed, dev=False)
        write_rows(folder / f"{name}.tsv", train)
        write_rows(folder / f"{name}.test.tsv", test)
        columns = (folder / f"{name}.tsv").read_text(encoding="utf-8").partition("\n")[0].split("\t")[:-1]
        text = columns[0] if len(columns) == 1 else columns
        tables[name] = {**task_of(source), "text": text, "label": "label", "train": str(folder / f"{name}.tsv")}
    return tables


def scores(run: Path, tasks: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The main metric on dev and test by task, of the model and of the probe where they differ."""
    from smoothtune.workflow.evaluate import evaluate_run

    test = [f"{name}={Path(table['train']).with_suffix('.test.tsv')}" for name, table in tasks.items()]
    found: dict[str, dict[str, Any]] = {name: {} for name in tasks}
    for part, evaluation in (("dev", evaluate_run(run)), ("test", evaluate_run(run, data=test))):
        table = evaluation.to_json()
        probe = table["baselines"].get("probe", {"tasks": {}})["tasks"]
        for name, metric in table["main"].items():
            value = table["tasks"][name][metric]["value"]
            found[name][part] = {
                "metric": metric,
                "model": value,
                "probe": probe.get(name, {metric: {"value": value}})[metric]["value"],
            }
    return found


def measure(data: Path, seed: int) -> dict[str, Any]:
    """Train the tasks together and each alone, and score them."""
    import smoothtune

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks = write_tasks(folder, data, seed)
        result: dict[str, Any] = {"seed": seed}
        for label, chosen in (("together", tasks), *((task, {task: table}) for task, table in tasks.items())):
            began = time.perf_counter()
            smoothtune.train({"seed": seed, "tasks": chosen}, run_dir=folder / label)
            state = json.loads((folder / label / "run.json").read_text())
            result[label] = {
                "seconds": time.perf_counter() - began,
                "model": state["recipe"]["model"],
                "tasks": scores(folder / label, chosen),
            }
            parts = ", ".join(f"{task} {part['test']['model']:.3f}" for task, part in result[label]["tasks"].items())
            progress(f"several tasks: seed {seed}, {label}: test {parts}")
    return result


def main() -> None:
    """Measure all seeds, then write the result."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    data = data_folder(None)
    if data is None:
        raise SystemExit("several tasks: set SMOOTHTUNE_DATA to the data folder")
    settings = settings_of(threads=options.threads, device="cpu", code=package_code(), rows=dict(TASKS))
    save("several_tasks", {**settings, "runs": [measure(data, seed) for seed in range(1, options.seeds + 1)]})


if __name__ == "__main__":
    main()
