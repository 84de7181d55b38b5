"""Where the time of prediction goes: rows per second by precision and by tokens of a batch, and the parts of a row's time.

Run: python benchmarks/predict_speed.py [--data-dir FOLDER] [--rows 1024] [--repetitions 3] [--threads 1]. Prints a table,
then one JSON line. Seconds are of the wall, the smallest of the repetitions; `prediction.py` compares with others.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from one_step import TASKS, one_step_run
from options import parser_of
from rows import SOURCES, read_rows, sampled

BUDGETS = (1024, 2048, 4096, 8192)


def best(work: Callable[[], object], repetitions: int) -> float:
    """Seconds of the fastest of `repetitions`, after one that is not counted."""
    work()
    found = []
    for _ in range(repetitions):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


def parts(model: Any, task: str, texts: list[Any], repetitions: int) -> dict[str, float]:
    """Microseconds a row of what is done beside the network: checking, tokenising, padding."""
    from smoothtune.config.experiment import trunk_options
    from smoothtune.data.tokenising import encode, in_memory
    from smoothtune.inference.batches import token_batches
    from smoothtune.inference.texts import checked_rows

    columns = len(model.columns(task))
    rows = list(checked_rows(task, texts, columns))
    reads = trunk_options(task, model.config.tasks[task], model.config.trunks).input
    encodings = encode(model.tokenizer, rows, reads, model.config.encoder.max_length)
    examples = model._examples(task, reads, rows)
    batches = list(token_batches(examples.lengths(), limit=examples.limit, columns=columns))
    works: dict[str, Callable[[], object]] = {
        "checking": lambda: list(checked_rows(task, texts, columns)),
        "tokenising": lambda: encode(model.tokenizer, rows, reads, model.config.encoder.max_length),
        "gathering": lambda: in_memory(encodings),
        "padding": lambda: [examples.batch(positions) for positions in batches],
    }
    return {name: 1e6 * best(work, repetitions) / len(rows) for name, work in works.items()}


def speeds(run: Path, texts: dict[str, list[Any]], repetitions: int) -> dict[str, dict[str, float]]:
    """Rows per second by task, then by precision and tokens of a batch."""
    import smoothtune
    from smoothtune.inference import answering
    from smoothtune.inference.batches import token_batches

    found: dict[str, dict[str, float]] = {task: {} for task in texts}
    for precision in ("bfloat16", "float32"):
        model = smoothtune.load(run, device="cpu", precision=precision)
        for budget in BUDGETS:
            answering.token_batches = functools.partial(token_batches, tokens=budget)  # type: ignore[assignment]
            for task, given in texts.items():
                seconds = best(functools.partial(model.predict, task, given), repetitions)
                found[task][f"{precision}, {budget} tokens"] = len(given) / seconds
    answering.token_batches = token_batches
    return found


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__, repetitions=3)
    parser.add_argument("--rows", type=int, default=1024)
    options = parser.parse_args()
    import smoothtune
    from smoothtune.runtime.device import keep_memory_mapped, set_threads
    from smoothtune.workflow.run import machine

    threads = set_threads(options.threads)
    keep_memory_mapped()
    sampled_rows = {name: sampled(read_rows(SOURCES[name], options.data_dir), options.rows) for name in TASKS}
    texts = {name: [row[0] if len(row) == 1 else row for row, _ in rows] for name, rows in sampled_rows.items()}
    with tempfile.TemporaryDirectory() as name:
        run = one_step_run(Path(name), options.data_dir)
        set_threads(threads)
        model = smoothtune.load(run, device="cpu")
        beside = {task: parts(model, task, given, options.repetitions) for task, given in texts.items()}
        rates = speeds(run, texts, options.repetitions)
    for task in texts:
        for what, rate in rates[task].items():
            print(f"{task:8}{what:26}{rate:8.0f} rows/s")
        print(f"{task:8}" + ", ".join(f"{what} {took:.1f} us a row" for what, took in beside[task].items()))
    print(json.dumps({"rows_per_second": rates, "beside": beside, "threads": threads, "machine": machine("cpu")}))


if __name__ == "__main__":
    main()
