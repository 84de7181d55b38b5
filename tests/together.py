"""What each of two processes does in the tests of many processes: `python -m tests.together FOLDER`, as a launcher starts it.

FOLDER holds an encoder and data; what is found is left there, by the first process unless it is each one's own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from smoothtune.config.trunks import PwimResnetTrunk as PwimOptions
from smoothtune.errors import ElsewhereError, SmoothtuneError, TerminatedError, UsageError
from smoothtune.inference.answering import answer_examples
from smoothtune.nn.trunks import packed_grid
from smoothtune.nn.trunks.pwim_resnet import PwimResnetTrunk
from smoothtune.runtime.processes import Processes, computing_with, together
from smoothtune.training.loop import StepReport
from smoothtune.workflow.train import resume, train
from tests.killing import hard
from tests.small_data import Prepared, first_rows, prepare, table

ROWS = {"plain": 33, "pwim": 37}  # of each task: four batches of 8, and one of a single row, or of 5
TRUNKS: dict[str, Any] = {"plain": None, "pwim": {"kind": "pwim_resnet", "depth": 1, "dropout": 0.0}}
WIDTH, PAIRS = 8, 5


def start(*arguments: str, world: int = 2, **more: Any) -> list[subprocess.Popen[str]]:
    """`python ARGUMENTS` in as many processes, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **common, "LOCAL_WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )
        for rank in range(world)
    ]


def twenty_steps(prepared: Prepared, name: str) -> tuple[list[Any], list[str]]:
    """The losses of each step, and the outputs that changed, or whose moments did, in a step that was not their task's."""
    run = prepared.run(rows=ROWS[name])
    losses: list[Any] = []
    wrong: list[str] = []
    before: dict[str, Any] = {}
    for event in run.events():
        if not isinstance(event, StepReport):
            continue
        losses.append(event.losses)
        assert run._live is not None
        held = run._live.parts.optimiser.state
        for task in prepared.experiment.tasks:
            parts = list(prepared.model.outputs[task].parameters())
            now = [*parts, *(moment for part in parts for moment in dict(held.get(part, {})).values())]
            now = [torch.as_tensor(part).detach().clone() for part in now]
            same = len(now) == len(before.get(task, ())) and all(map(torch.equal, now, before[task]))
            if task in before and task not in event.losses and not same:
                wrong.append(f"step {event.step}: {task} changed")
            if task in event.losses and same:
                wrong.append(f"step {event.step}: {task} did not change")
            before[task] = now
    return losses, wrong


def prepared(folder: Path, name: str, batch: int) -> Prepared:
    """Three tasks, `annealed`, for 20 steps.

    The distance of two states that are nearly equal is rounding noise (see `similarity_cube`), which training multiplies:
    the encoder's weights are large, so that states depend on their neighbours, and no two texts of a pair are equal.
    """
    stop = {"max_epochs": 2, "max_steps": 20}
    wanted = table(
        folder / "encoder", trunk=TRUNKS[name], schedule="annealed", batch_size=batch, stop=stop, learning_rate=1e-3
    )
    found = prepare(wanted, folder / "apart", folder / "cache" / "smoothtune")
    with torch.no_grad():
        for weight in found.model.encoder.parameters():
            weight.mul_(10 if weight.ndim == 2 else 1)
    return found


def write_apart(data: Path, folder: Path) -> None:
    """The data of `data` with one more word where the two texts of a pair are equal."""
    folder.mkdir()
    for path in data.glob("*.tsv"):
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        apart = [[line[0], f"{line[0]} good", line[2]] if line[:1] == line[1:2] else line for line in lines]
        (folder / path.name).write_text("".join("\t".join(line) + "\n" for line in apart))


def states_and_masks() -> tuple[torch.Tensor, ...]:
    """Token states and masks of `PAIRS` pairs, drawn."""
    draw = torch.Generator().manual_seed(1)
    lengths = torch.tensor([[3, 5], [6, 2], [4, 4], [1, 6], [5, 3]])
    masks = [torch.arange(6) < lengths[:, side, None] for side in (0, 1)]
    states = [torch.randn(PAIRS, 6, WIDTH, generator=draw) for _ in masks]
    return states[0], masks[0], states[1], masks[1]


def pwim_step(dtype: torch.dtype, rows: slice = slice(PAIRS), scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Features, gradients and running statistics of a PWIM trunk that sees `rows`, its loss being multiplied by `scale`.

    In float64 or float32, or under bfloat16 autocast.
    """
    torch.manual_seed(2)
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    trunk = PwimResnetTrunk(PwimOptions(kind="pwim_resnet", depth=2, dropout=0.0), WIDTH).to(wide)
    states_a, mask_a, states_b, mask_b = (tensor[rows].clone() for tensor in states_and_masks())
    states_a, states_b = states_a.to(wide).requires_grad_(), states_b.to(wide)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        features = trunk(states_a, mask_a, states_b, mask_b)
    (features.to(wide).square().sum() * scale).backward()
    found = {"features": features.detach().to(wide).clone(), "states": states_a.grad}
    found |= {f"gradient.{name}": part.grad for name, part in trunk.named_parameters()}
    found |= {f"buffer.{name}": part.to(wide) for name, part in trunk.named_buffers()}
    return {name: part.contiguous() for name, part in found.items() if part is not None}


def norms(folder: Path, processes: Processes) -> None:
    """PWIM's steps on two and three pairs, and on all of them in the first process, the other one not counting."""
    dtypes = [torch.float64, *filter(packed_grid.available, (torch.float32, torch.bfloat16))]
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        rows = (slice(2), slice(2, PAIRS))[processes.rank]
        save_file(pwim_step(dtype, rows), folder / f"halves-{name}-{processes.rank}.safetensors")
        rows, scale = ((slice(PAIRS), 1.0), (slice(PAIRS - 1, PAIRS), 0.0))[processes.rank]
        with computing_with(Processes(processes.rank, 2, counts=processes.is_main)):
            save_file(pwim_step(dtype, rows, scale), folder / f"first-{name}-{processes.rank}.safetensors")


def failures(processes: Processes) -> list[tuple[str, int, str]]:
    """What each process is told when the second fails, when both do, and when the first of a machine does."""
    found = []
    for agreed, failing in ((processes.agreeing, {1}), (processes.agreeing, {0, 1}), (processes.in_turn, {0})):
        try:
            with agreed():
                if processes.rank in failing:
                    raise UsageError(f"process {processes.rank} cannot")
        except SmoothtuneError as error:
            found.append((type(error).__name__, error.exit_code, str(error)))
    return found


def ended_and_resumed(folder: Path) -> None:
    """A run that nobody ends, and one that SIGTERM ends: it reaches the first process alone."""
    data, encoder = folder / "data", folder / "encoder"

    def listen(event: Any) -> None:
        if isinstance(event, StepReport) and event.step == 7:
            signal.raise_signal(signal.SIGTERM)

    train(hard(encoder), data_dir=data, run_dir=folder / "whole")
    code = 0
    try:
        train(hard(encoder), data_dir=data, run_dir=folder / "cut", listen=listen)
    except (TerminatedError, ElsewhereError) as error:
        code = error.exit_code
    assert code == 143, code
    resume(folder / "cut")


def main(folder: Path) -> None:
    """All that two processes do together."""
    with together() as processes:
        for name in TRUNKS:
            with processes.in_turn():
                found = prepared(folder, name, 4)
            losses, wrong = twenty_steps(found, name)
            (folder / f"{name}-{processes.rank}.json").write_text(json.dumps({"losses": losses, "wrong": wrong}))
        dev = first_rows(found.dev["near"], 19)
        answers = answer_examples(found.model, dev, dtype=torch.float32, batch_size=3)
        weights = {f"weights.{name}": part.clone() for name, part in found.model.state_dict().items()}
        save_file({**weights, "answers": torch.from_numpy(answers)}, folder / f"end-{processes.rank}.safetensors")
        norms(folder, processes)
        (folder / f"failures-{processes.rank}.json").write_text(json.dumps(failures(processes)))
    ended_and_resumed(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
