"""Checkpoints as files: what is written is read again to the bit, and no damage passes unseen."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smoothtune.errors import ModelFileError
from smoothtune.files import WriteError, umask
from smoothtune.training import checkpoint
from smoothtune.training.adamw import KernelAdamW
from smoothtune.training.checkpoint import Checkpoints, read_checkpoint
from smoothtune.training.optimiser import give_moments
from smoothtune.training.state import put_together, taken_apart

FILES = ("state.json", "tensors.safetensors", "SHA256SUMS")


def state(seed: int) -> dict[str, Any]:
    """Plain values and tensors of several dtypes, one of them empty, two that share memory."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(17, 5, generator=draw)
    return {
        "step": seed,
        "rate": 0.1 + 0.2 * seed,
        "none": None,
        "names": ["a", "ä"],
        "moments": {0: {"step": 3, "mean": weight, "same": weight}, 1: {}},
        "seen": [torch.arange(9, dtype=torch.uint8), torch.zeros(0), torch.randn(3, generator=draw).bfloat16()],
    }


def equal(a: Any, b: Any) -> bool:
    """Equal to the bit, keys as texts."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return {str(key) for key in a} == {str(key) for key in b} and all(equal(a[key], b[str(key)]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b) and type(a) is type(b)


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    """Two checkpoints, of states 1 and 2."""
    found = Checkpoints(tmp_path / "checkpoints")
    for seed in (1, 2):
        found.write(state(seed))
    return found


def test_what_is_read_is_what_was_written(kept: Checkpoints) -> None:
    newest, wrong = kept.newest()
    assert newest is not None
    assert (newest.folder.name, newest.format, wrong) == ("000002", checkpoint.FORMAT, [])
    assert equal(state(2), newest.state)
    assert {path.name for path in newest.folder.iterdir()} == set(FILES)


def test_the_sums_are_those_of_sha256sum(kept: Checkpoints) -> None:
    import hashlib

    folder = kept.numbered()[-1]
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_the_last_two_are_kept(kept: Checkpoints) -> None:
    kept.write(state(3))
    assert [path.name for path in kept.numbered()] == ["000002", "000003"]
    kept.drop_after(kept.folder / "000002")
    assert [path.name for path in kept.numbered()] == ["000002"]
    kept.drop_after(None)
    assert kept.newest() == (None, [])


def test_what_is_not_a_checkpoint_is_never_removed(kept: Checkpoints, tmp_path: Path) -> None:
    (kept.folder / "2019").mkdir()
    (kept.folder / "2019" / "photo.jpg").write_bytes(b"mine")
    elsewhere = tmp_path / "elsewhere"
    kept.folder.rename(elsewhere)
    kept.folder.symlink_to(elsewhere)
    kept.drop_after(None)
    assert sorted(path.name for path in elsewhere.rglob("*")) == ["2019", "photo.jpg"]
    assert kept.folder.is_symlink()


def test_whom_the_umask_lets_may_read_all_files(kept: Checkpoints) -> None:
    modes = {path.stat().st_mode & 0o777 for path in kept.numbered()[-1].iterdir()}
    assert modes == {0o666 & ~umask()}


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        {"exp_avg": torch.tensor(0.0)},
        {"exp_avg_sq": [0.0]},
        {"exp_avg_sq": torch.zeros(4, 3)},
        {"exp_avg": torch.zeros(3, 4).double()},
        {"exp_avg": torch.full((3, 4), torch.nan)},
        {"exp_avg": torch.zeros(4, 3).T},
        {"step": "1"},
        {"step": -1},
        {"step": 0.5},
        {"step": 2},
        {"step": torch.tensor(torch.nan)},
        {"exp_avg_sq": torch.full((3, 4), -1e-9)},
        {"step": torch.zeros(2)},
        {"more": 1},
    ],
)
def test_moments_that_no_such_parameter_has_are_refused(change: dict[str, Any], kernel: bool) -> None:
    parameter = torch.nn.Parameter(torch.zeros(3, 4))
    optimiser = KernelAdamW([{"params": [parameter]}]) if kernel else torch.optim.AdamW([parameter])
    held = {"step": 1 if kernel else torch.tensor(1.0), "exp_avg": torch.zeros(3, 4), "exp_avg_sq": torch.zeros(3, 4)}
    give_moments(optimiser, {"0": held}, steps=1)
    for number, moments in (("0", {**held, **change}), ("1", held), ("-1", held)):
        with pytest.raises(ValueError, match=rf"^{number}[.:].* (expected |but the stage trains 1 parameters)"):
            give_moments(optimiser, {number: moments}, steps=1)


def damages(folder: Path, draw: random.Random) -> list[tuple[str, str, int]]:
    """(file, what is done, place): every region of every file is flipped, cut or filled at."""
    found = []
    for name in FILES:
        size = (folder / name).stat().st_size
        edges = [0, 1, size // 2, size - 1]
        places = edges + [draw.randrange(size) for _ in range(36)]
        found += [(name, "flip", place) for place in places]
        found += [(name, "cut", place) for place in places[:20]]
        found += [(name, "insert", place) for place in places[:10]]
    return found


def damage(path: Path, how: str, place: int) -> None:
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[place] ^= 1 << place % 8
    elif how == "cut":
        del content[place:]
    else:
        content.insert(place, content[place])
    path.write_bytes(content)


def test_no_damage_passes_unseen(kept: Checkpoints, tmp_path: Path) -> None:
    places = damages(kept.numbered()[-1], random.Random(5))
    assert len(places) >= 200
    for number, (name, how, place) in enumerate(places):
        copy = shutil.copytree(kept.folder, tmp_path / f"copy-{number}")
        damage(copy / "000002" / name, how, place)
        newest, wrong = Checkpoints(copy).newest()
        assert newest is not None
        assert newest.folder.name == "000001", (name, how, place)
        assert equal(state(1), newest.state)
        assert len(wrong) == 1
        assert str(copy / "000002") in wrong[0]
    print(f"{len(places)} damages noticed of {len(places)}")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(kept: Checkpoints, name: str) -> None:
    folder = kept.numbered()[-1]
    (folder / name).unlink()
    with pytest.raises(ModelFileError, match=rf"{name}: cannot be read: No such file"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"format": 1}', '{"format": 1, "state": "tensor:none"}', "[" * 100_000, '{"state": 1']
)
def test_states_of_strangers_are_refused(kept: Checkpoints, text: str) -> None:
    folder = kept.numbered()[-1]
    (folder / "state.json").write_text(text)
    (folder / "SHA256SUMS").write_text(checkpoint._sums(folder))
    with pytest.raises(
        ModelFileError, match=r"000002/(state\.json: is no state of a run|tensors\.safetensors: has no)"
    ):
        read_checkpoint(folder)


def test_a_write_that_fails_leaves_those_before(kept: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    with pytest.raises(WriteError, match="000003: cannot be written: No space left on device"):
        kept.write(state(3))
    monkeypatch.undo()
    assert [path.name for path in kept.folder.iterdir() if not path.name.startswith("00000")] == []
    newest, wrong = kept.newest()
    assert newest is not None
    assert (newest.folder.name, wrong) == ("000002", [])


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["tensor:", "tensor:a", "text:", "text:tensor:a"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(plain)
def test_plain_values_go_through_json_unchanged(value: Any) -> None:
    apart, tensors = taken_apart(value)
    assert tensors == {}
    assert put_together(json.loads(json.dumps(apart)), {}) == value


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes"])
def test_what_cannot_be_kept_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"/a/0: .* cannot be kept"):
        taken_apart({"a": [value]}, "")
