"""A process that has computed in several threads forks: the child has none of them, and computes all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from smoothtune.runtime import forking
from smoothtune.runtime.forking import ProcessLock
from tests.adapted import MIXED_ADAPTERS, MIXED_LORA, adapted, stir, write

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

_SCRIPT = """
import os, signal, sys
import numpy as np
import smoothtune, torch
from smoothtune.runtime import device

model = smoothtune.load(sys.argv[1], device="cpu")
torch.set_num_threads(2)
texts = ["the very small cat " * 5] * 512
expected = model.predict_probabilities("mood", texts)
{inside}
child = os.fork()
if child == 0:
    signal.alarm(30)
    answers = model.predict_probabilities("mood", texts)
    same = np.allclose(answers, expected, rtol=1e-5, atol=1e-6)
    os._exit(0 if same and device.set_threads(2) == torch.get_num_threads() == 1 else 3)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert torch.get_num_threads() == 2
print("child", status)
"""
_HOLDS_THE_LOCKS = """
import threading
from smoothtune.inference.model import _deciding
from smoothtune.nn.at_rest import _lock
held = threading.Event()
def hold():
    with _deciding, _lock:
        held.set()
        threading.Event().wait()
threading.Thread(target=hold, daemon=True).start()
held.wait()
"""


@pytest.mark.parametrize(
    ("implementation", "kernels", "inside"),
    [("native", "auto", ""), ("native", "plain", ""), ("transformers", "auto", _HOLDS_THE_LOCKS)],
    ids=["kernels", "plain", "transformers"],
)
def test_a_forked_child_predicts(
    implementation: str, kernels: str, inside: str, tiny_encoder: Path, small_data: Path, shared_cache: Path, tmp_path: Path
) -> None:  # fmt: skip
    adaptations = {"lora": MIXED_LORA, "adapters": MIXED_ADAPTERS}
    prepared = adapted(tiny_encoder, small_data, shared_cache, implementation=implementation, **adaptations)
    stir(prepared.model)
    folder = write(prepared, tmp_path / "model", **adaptations)
    script = _SCRIPT.replace("{inside}", inside)
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "2", "SMOOTHTUNE_KERNELS": kernels, "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("child 0\n", 0), done.stderr


def test_nothing_is_registered_on_import() -> None:
    script = (
        "import os, sys; seen = []; os.register_at_fork = lambda **named: seen.append(named)\n"
        "import smoothtune.inference.model, smoothtune.workflow.train\n"
        "from smoothtune.runtime import device, forking\n"
        "ours = [named for named in seen if named.get('after_in_child') is forking._begin_child]\n"
        "assert not ours; device.set_threads(1); device.set_threads(1)\n"
        "print(sum(named.get('after_in_child') is forking._begin_child for named in seen))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "1\n"


def test_a_system_without_fork_has_nothing_to_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "_watched", False)
    monkeypatch.delattr(os, "register_at_fork")
    forking.watch_forks()
    assert not forking._watched


def test_a_lock_is_taken_several_times_by_one_thread_and_renewed() -> None:
    lock = ProcessLock()
    with lock, lock:
        pass
    held = lock._lock
    held.acquire()
    lock.renew()
    assert lock._lock is not held
    with lock:
        assert not _free_for_others(lock)
    assert _free_for_others(lock)


def _free_for_others(lock: ProcessLock) -> bool:
    """Whether another thread could take it."""
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(lock._lock.acquire, blocking=False).result()
        if taken:
            pool.submit(lock._lock.release).result()
    return taken
