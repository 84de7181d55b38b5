"""Two processes train what one would with the double batch; they end, and go on, together."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import load_file

from smoothtune.errors import UsageError
from smoothtune.inference.answering import answer_examples
from smoothtune.nn.trunks import packed_grid
from smoothtune.runtime.device import pick_device, set_threads
from smoothtune.runtime.processes import Processes, together
from smoothtune.workflow.identity import check_alike
from smoothtune.workflow.train import resume
from tests.killing import hard, same_run
from tests.small_data import first_rows, write_data
from tests.tiny import write_bert
from tests.together import prepared, pwim_step, start, twenty_steps, write_apart

LIMIT = 60.0  # seconds until a process has noticed that another one is gone
BEATING_FAST = """
from datetime import timedelta
from smoothtune.runtime import heartbeat
heartbeat.BEAT = timedelta(seconds=0.6)
from smoothtune.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left that did together all that `tests/together.py` has."""
    found = tmp_path_factory.mktemp("together")
    write_bert(found / "encoder")
    write_apart(write_data(found / "data"), found / "apart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(found / "cache"))
        ended(start("-m", "tests.together", str(found)), [0, 0])
    return found


def ended(processes: list[Any], codes: list[int]) -> list[str]:
    """What they said, when all have ended."""
    said = ["\n".join(process.communicate(timeout=240)) for process in processes]
    assert [process.returncode for process in processes] == codes, "\n".join(said)
    return said


@pytest.mark.parametrize(("name", "close"), [("plain", 1e-5), ("pwim", 1e-4)])
def test_losses_are_those_of_one_process_with_the_double_batch(folder: Path, name: str, close: float) -> None:
    told = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]
    losses, wrong = twenty_steps(prepared(folder, name, 8), name)
    assert (wrong, told[0]["wrong"]) == ([], [])
    assert len(losses) == 20
    assert {task for step in losses for task in step} == {"mood", "same", "near"}
    for ours, theirs in zip(told[0]["losses"], losses, strict=True):
        assert ours.keys() == theirs.keys()
        for task, parts in theirs.items():
            assert ours[task] == pytest.approx(parts, rel=close, abs=close)


def test_both_have_the_same_weights(folder: Path) -> None:
    ours, theirs = (load_file(folder / f"end-{rank}.safetensors") for rank in (0, 1))
    assert len(ours) > 20
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As each of the two processes has: torch's own products depend on the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_answers_are_those_of_one_process_to_the_bit(folder: Path) -> None:
    end, found = load_file(folder / "end-0.safetensors"), prepared(folder, "pwim", 4)
    weights = {name.removeprefix("weights."): part for name, part in end.items() if name != "answers"}
    found.model.load_state_dict(weights)
    dev = first_rows(found.dev["near"], 19)
    alone = answer_examples(found.model, dev, dtype=torch.float32, batch_size=3)
    assert np.array_equal(alone, end["answers"].numpy())
    assert len(set(alone.tolist())) > 10


DTYPES = [
    pytest.param(torch.float64, 1e-9, id="plain"),
    *(
        pytest.param(
            dtype,
            close,
            id=f"packed, {dtype}",
            marks=pytest.mark.skipif(not packed_grid.available(dtype), reason=f"the processor has no {unit}"),
        )
        for dtype, close, unit in ((torch.float32, 1e-4, "AVX-512"), (torch.bfloat16, 3e-2, "tiles"))
    ),
]


@pytest.mark.parametrize(("dtype", "close"), DTYPES)
def test_batch_norm_is_over_the_cells_of_all(folder: Path, dtype: torch.dtype, close: float) -> None:
    name = str(dtype).removeprefix("torch.")
    whole = pwim_step(dtype)
    parts = [load_file(folder / f"halves-{name}-{rank}.safetensors") for rank in (0, 1)]
    for key, wanted in whole.items():
        if key.startswith("buffer."):
            assert torch.equal(parts[0][key], parts[1][key])
            found = parts[0][key]
        else:
            found = torch.cat([part[key] for part in parts]) if key in ("features", "states") else sum(
                part[key] for part in parts
            )  # fmt: skip
        assert far(found, wanted) < close, key


@pytest.mark.parametrize(("dtype", "close"), DTYPES)
def test_a_process_that_does_not_count_changes_nothing(folder: Path, dtype: torch.dtype, close: float) -> None:
    name = str(dtype).removeprefix("torch.")
    whole = pwim_step(dtype)
    first, other = (load_file(folder / f"first-{name}-{rank}.safetensors") for rank in (0, 1))
    for key, wanted in whole.items():
        assert far(first[key], wanted) < close, key
        if key.startswith("gradient."):
            assert not other[key].any(), key


def far(found: Any, wanted: torch.Tensor) -> float:
    """The largest difference, relative to the largest number; a bias before a norm has a gradient of rounding alone."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-2))


def test_ended_by_a_signal_to_one_they_reach_the_same_bits(folder: Path) -> None:
    assert same_run(folder / "cut", folder / "whole")
    told = json.loads((folder / "cut" / "run.json").read_text())
    assert [(entry["stage"], entry["step"], entry["differs"]) for entry in told["resumed"]] == [("joint", 7, [])]
    assert told["processes"] == 2


def test_what_one_cannot_do_ends_all_and_is_said_once(folder: Path) -> None:
    first, second = (json.loads((folder / f"failures-{rank}.json").read_text()) for rank in (0, 1))
    assert first == [
        ["ElsewhereError", 2, "process 1 of 2 failed, and says why"],
        ["UsageError", 2, "process 0 cannot"],
        ["UsageError", 2, "process 0 cannot"],
    ]
    assert second == [
        ["UsageError", 2, "process 1 cannot"],
        ["ElsewhereError", 2, "process 0 of 2 failed, and says why"],
        ["ElsewhereError", 2, "process 0 of 2 failed, and says why"],
    ]


def test_a_killed_process_ends_the_other_and_the_run_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    run, file = tmp_path / "run", tmp_path / "hard.toml"
    file.write_text(tomli_w.dumps(hard(folder / "encoder")))
    given = ("-m", "smoothtune", "train", str(file), "--data-dir", str(folder / "data"), "--run-dir", str(run))
    processes = start(*given)
    wait_for(run / "checkpoints" / "000006", processes)
    processes[1].kill()
    began = time.monotonic()
    said = ended(processes, [1, -signal.SIGKILL])[0]
    assert time.monotonic() - began < LIMIT
    assert "process 0 of 2: another process of this run has ended, or cannot be reached" in said
    assert f"go on with: torchrun --nproc-per-node 2 -m smoothtune resume {run}" in said
    assert "Traceback" not in said

    shutil.copytree(run, tmp_path / "copy")
    with pytest.raises(UsageError, match=r"number of processes \(processes: 2 then, 1 now\).*--allow device"):
        resume(tmp_path / "copy")
    ended(start("-m", "smoothtune", "resume", str(run)), [0, 0])
    assert same_run(run, folder / "whole")


@pytest.mark.parametrize("stopped", [1, 0])  # 0 has the store where the beats are
def test_a_process_that_answers_no_more_ends_the_other_and_the_run_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    run, file = tmp_path / "run", tmp_path / "hard.toml"
    file.write_text(tomli_w.dumps(hard(folder / "encoder")))
    given = ("train", str(file), "--data-dir", str(folder / "data"), "--run-dir", str(run))
    processes = start("-c", BEATING_FAST, *given)
    wait_for(run / "checkpoints" / "000006", processes)
    processes[stopped].send_signal(signal.SIGSTOP)  # its connections stay, as those of a machine that vanished do
    try:
        said = ended([processes[1 - stopped]], [1])[0]
    finally:
        processes[stopped].kill()
    ended([processes[stopped]], [-signal.SIGKILL])
    who = ("process 0, or its launcher, through which the processes find each other, has", "process 1 has")[stopped]
    assert (
        f"process {1 - stopped} of 2: {who} not answered for 9 s (stopped, or the machine or the network is gone)"
        in said
    )
    assert f"go on with: torchrun --nproc-per-node 2 -m smoothtune resume {run}" in said
    assert "Traceback" not in said

    ended(start("-m", "smoothtune", "resume", str(run)), [0, 0])
    assert same_run(run, folder / "whole")


def wait_for(path: Path, processes: list[Any]) -> None:
    """Wait until a file or folder, or a later one of its kind, is there."""
    deadline = time.monotonic() + 120
    while not any(found.name >= path.name for found in path.parent.glob("0*")):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), "\n".join(ended(processes, [0, 0]))
        time.sleep(0.01)


# one process, told that it is one of several


def test_each_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    second = Processes(3, 4, 1, 2)
    assert [str(pick_device(name, second)) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    with pytest.raises(UsageError, match=r"runtime\.device: got 'cuda:1' for 4 processes; use `auto`, `cuda` or `cpu`"):
        pick_device("cuda:1", second)
    with pytest.raises(UsageError, match="3 processes on this machine, but torch finds 2 CUDA devices"):
        pick_device("auto", Processes(0, 3, 0, 3))


@pytest.mark.parametrize(
    ("asked", "by_torchrun", "used"), [(None, True, 4), ("1", True, 4), ("1", False, 1), ("3", True, 3), ("", False, 4)]
)
@pytest.mark.usefixtures("one_thread")
def test_cores_are_shared(monkeypatch: pytest.MonkeyPatch, asked: str | None, by_torchrun: bool, used: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(9)))
    for name, value in (("OMP_NUM_THREADS", asked), ("TORCHELASTIC_RUN_ID", "1" if by_torchrun else None)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert set_threads(None, Processes(0, 2, 0, 2)) == used == torch.get_num_threads()
    assert set_threads(2, Processes(0, 2, 0, 2)) == 2


def test_they_must_know_where_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UsageError, match="WORLD_SIZE is 2, but MASTER_ADDR and MASTER_PORT are not set"), together():
        pass


def test_other_files_on_another_machine_are_named() -> None:
    first = {"data": {"mood": {"train": {"rows": 40, "content": "a"}}}, "device": {"kind": "cpu"}}
    mine = {"data": {"mood": {"train": {"rows": 40, "content": "b"}}}, "device": {"kind": "cpu"}}
    check_alike(first, first, 3)
    with pytest.raises(UsageError, match=r"process 3: .* \(data\.mood\.train\.content: a in process 0, b here\)"):
        check_alike(first, mine, 3)


def test_commands_name_the_launcher() -> None:
    assert Processes().launcher == "smoothtune"
    assert Processes(1, 8, 1, 8).launcher == "torchrun --nproc-per-node 8 -m smoothtune"
    assert Processes(9, 16, 1, 8).launcher == "torchrun --nnodes 2 ... --nproc-per-node 8 -m smoothtune"
