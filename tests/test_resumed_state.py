"""A checkpoint whose sums are right and in which one value cannot be of a run of the stage is refused, by its key path."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from smoothtune.errors import ModelFileError, UsageError
from smoothtune.smoothness import Smoothness
from smoothtune.training.state import put_together, taken_apart
from smoothtune.workflow.train import resume, train
from tests.fuzz.files import Files, read_files, write_files
from tests.fuzz.going_on import GoingOn, one_value_changed, with_sums
from tests.killing import KillAt, until_killed
from tests.small_data import snapshot, table

GONE = object()
CASES: list[tuple[str, Any, str]] = [
    ("run.stage", 1, r"state\.json: .* run\.stage: got 1, but the run has 1 stages"),
    ("run.told", [{}], r"run\.told: got 1 stages, expected the 0 before"),
    ("run.threads", "1", r"run\.threads: got '1': input should be a valid integer"),
    ("stage.more", 1, r"stage\.more: got 1: extra inputs are not permitted"),
    ("stage.moments", GONE, r"stage\.moments: field required"),
    ("stage.progress", [], r"stage\.progress: got a list of 0: input should be a valid dictionary"),
    ("stage.progress.step", 10**12, r"progress\.step: got 1000000000000, but the stage has 15 steps"),
    ("stage.progress.step", True, r"progress\.step: got True: input should be a valid integer"),
    ("stage.progress.step", 0, r"progress\.step: got 0 of 22 batches"),
    ("stage.progress.number", 21, r"progress\.number: got 21, but the schedule has given 22 batches"),
    ("stage.progress.skipped", 23, r"progress\.skipped: got 23 of 22 batches"),
    ("stage.progress.seconds", float("nan"), r"progress\.seconds: got nan: input should be a finite number"),
    ("stage.progress.seconds", -1.0, r"progress\.seconds: got -1\.0: .*greater than or equal to 0"),
    ("stage.progress.epoch", 0, r"progress\.epoch: got 0, but the schedule is in epoch 2"),
    ("stage.progress.epoch", None, r"progress\.seen: got tasks \['mood', 'near'\], expected \[\]"),
    ("stage.progress.pieces", 2**62, r"progress\.pieces: got 4611686018427387904, expected a power of 2 for batches"),
    ("stage.progress.pieces", 3, r"progress\.pieces: got 3, expected a power of 2"),
    ("stage.progress.counts.near", 10**6, r"progress\.counts\.near: got 1000000 in 11 steps"),
    (
        "stage.progress.sums.mood.task",
        GONE,
        r"progress\.sums\.mood: got .*, expected \['task', 'unweighted', 'weight'\]",
    ),
    ("stage.progress.sums.mood.other", 1.0, r"progress\.sums\.mood: got .*'other'"),
    ("stage.progress.sums.fog", {}, r"progress\.sums: got tasks \['fog', 'mood', 'near'\] and counts of"),
    (
        "stage.progress.seen.mood",
        torch.zeros(9, dtype=torch.int64),
        r"progress\.seen\.mood: got a tensor \(9,\) of int64",
    ),
    (
        "stage.progress.seen.mood",
        torch.full((9,), 3, dtype=torch.uint8),
        r"progress\.seen\.mood: holds 3, expected 0, 1",
    ),
    ("stage.progress.seen.mood", torch.ones(999, dtype=torch.uint8), r"progress\.seen\.mood: got a tensor \(999,\)"),
    ("stage.schedule.epoch", 10**12, r"schedule\.epoch: got 1000000000000, but the stage has 3 epochs"),
    ("stage.schedule.position", 2**62, r"schedule\.position: got 4611686018427387904, but epoch 2 has 10 batches"),
    ("stage.schedule.active", ["near", "mood"], r"schedule\.active: got \['near', 'mood'\], expected tasks of"),
    ("stage.schedule.active", ["near"], r"schedule\.position: |progress\.|rule\.running: "),
    ("stage.schedule.cursors.mood", -1, r"schedule\.cursors\.mood: got -1: .*greater than or equal to 0"),
    ("stage.schedule.cursors.fog", 1, r"schedule\.cursors: got tasks \['fog', 'mood', 'near'\]"),
    ("stage.weights.outputs\tmood\tlinear\tbias", GONE, r"weights\.outputs\.mood\.linear\.bias: is in one of"),
    (
        "stage.weights.outputs\tmood\tlinear\tbias",
        torch.zeros(4),
        r"bias: got a tensor \(4,\) .*expected a tensor \(3,\)",
    ),
    (
        "stage.weights.outputs\tmood\tlinear\tbias",
        torch.full((3,), torch.nan),
        r"bias: holds values that are not finite",
    ),
    ("stage.weighting", {}, r"weighting\.parts\.1\.log_variance: is in one of the model and the state, not in both"),
    ("stage.moments.0.step", 99, r"moments\.0\.step: got 99, expected a whole number from 1 to 11"),
    ("stage.moments.00", {}, r"moments\.00: got moments, but the stage trains"),
    ("stage.moments.0.exp_avg", 1, r"moments\.0\.exp_avg: got 1, expected finite values"),
    ("stage.regularisers", [], r"regularisers: got 0, expected 2"),
    ("stage.regularisers.0.seen\tmood", 5, r"regularisers\.0\.seen\.mood: got 5, but \d+ batches have passed"),
    ("stage.regularisers.0.seen\tmood", GONE, r"regularisers\.0\.seen\.mood: got 0, but"),
    ("stage.regularisers.0.seen\tnear", 1, r"regularisers\.0\.seen\.near: got 1, but 0 batches"),
    ("stage.regularisers.0.memory\tx", 1, r"regularisers\.0\.memory\.x: got int, expected the batches seen"),
    ("stage.regularisers.1.memory\tprogress", 2.0, r"regularisers\.1\.memory\.progress: got 2\.0, expected a share"),
    ("stage.regularisers.1.memory\tother", 2.0, r"regularisers\.1\.memory\.other: got \d+ keys, expected progress and"),
    (
        "stage.regularisers.1.memory\tteacher\toutputs\tmood\tlinear\tbias",
        GONE,
        r"memory\.teacher: .*the teacher lacks it",
    ),
    (
        "stage.regularisers.1.memory\tteacher\toutputs\tmood\tlinear\tbias",
        torch.ones(4),
        r"\.bias: got \(4,\), expected",
    ),
    (
        "stage.regularisers.1.memory\tteacher\toutputs\tmood\tlinear\tbias",
        1,
        r"\.bias: got int, expected finite weights",
    ),
    ("stage.best.present", True, r"best\.kept: holds tensors although"),
    ("stage.best.kept", {}, r"best\.kept: holds no state for the best value"),
    ("stage.rule.stopping.best", 0.999, r"rule\.stopping\.best: got 0\.999, which is not the score of `after`"),
    ("stage.rule.stopping.waited", 3, r"rule\.stopping\.waited: got 3 after 2 epochs"),
    ("stage.rule.by_task", {}, r"rule\.by_task: got \[\], expected \['mood', 'near'\]"),
    ("stage.rule.by_task.near.waited", -1, r"rule\.by_task\.near\.waited: got -1: "),
    ("stage.rule.running", ["near"], r"rule\.running: got \['near'\], but the schedule has \['mood', 'near'\] left"),
    ("stage.rule.running", ["near", "mood"], r"rule\.running: got \['near', 'mood'\], expected of"),
    ("stage.rule.best.near", GONE, r"rule\.best\.near: got no state for the best value"),
    (
        "stage.rule.best.fog",
        {"present": True, "kept": {}},
        r"rule\.best: got \['fog', 'mood', 'near'\], expected tasks of",
    ),
    (
        "stage.notices.said",
        [["x", "lost", "mood"]],
        r"notices\.said\.0: got 'x', 'lost', 'mood', expected a regulariser",
    ),
    ("stage.notices.said", [["a", "b"]], r"notices\.said\.0"),
    ("stage.before", {}, r"stage\.before\.dev: field required"),
    ("stage.after", None, r"after: got none after 2 epochs"),
    ("stage.after.dev.main.mood", 0.123, r"stage\.after\.dev: holds a main metric of mood that is none of the task's"),
    ("stage.after.dev.plain_mean", 0.123, r"stage\.after\.dev: holds a plain mean that is not that"),
    ("stage.after.train.score", 10.0**12, r"stage\.after\.train: holds a metric beyond -1 to 1"),
    ("stage.after.train.tasks.mood.accuracy", GONE, r"stage\.after(\.train)?: holds "),
    ("stage.after.train.tasks.mood.macro_f1", GONE, r"stage\.after: holds other metrics of dev than of train"),
]


@pytest.fixture(scope="module")
def going_on() -> GoingOn:
    return GoingOn()


@pytest.fixture(scope="module")
def seeds(going_on: GoingOn, tmp_path_factory: pytest.TempPathFactory) -> list[Files]:
    return going_on.seeds(tmp_path_factory.mktemp("seeds"))


def changed(files: Files, path: str, value: Any) -> Files:
    """`files` with another `value` at a path of keys, in which tabs stand for full stops; tensors follow the state."""
    content, tensors = files["state.json"], files["tensors.safetensors"]
    assert isinstance(content, bytes)
    assert isinstance(tensors, bytes)
    whole = json.loads(content)
    state = holder = put_together(whole["state"], load(tensors))
    *above, last = (int(key) if key.isdecimal() and "moments" not in path else key for key in path.split("."))
    for key in above:
        holder = holder[key]
    last = last.replace("\t", ".") if isinstance(last, str) else last
    if value is GONE:
        del holder[last]
    else:
        holder[last] = deepcopy(value)
    plain, found = taken_apart(state)
    text = json.dumps({**whole, "state": plain}).encode()
    return with_sums(
        {"state.json": text, "tensors.safetensors": save({key: part.clone() for key, part in found.items()})}
    )


@pytest.mark.parametrize(("path", "value", "text"), CASES)
def test_what_cannot_be_of_a_run_is_refused_by_its_path(
    going_on: GoingOn, seeds: list[Files], tmp_path: Path, path: str, value: Any, text: str
) -> None:
    folder = tmp_path / "000007"
    write_files(changed(seeds[-1], path, value), folder)
    with pytest.raises(ModelFileError, match=text) as error:
        going_on.read(folder)
    assert str(error.value).startswith(f"{folder}: ")
    assert str(error.value).endswith(
        f"; remove {folder} to go on from the checkpoint before it, or {tmp_path} to start over"
    )


def test_what_is_honest_goes_on(going_on: GoingOn, seeds: list[Files], tmp_path: Path) -> None:
    assert len(seeds) == 3
    for files in seeds:
        write_files(files, tmp_path / "case")
        going_on.read(tmp_path / "case")
        write_files(changed(files, "stage.progress.seconds", 7.5), tmp_path / "case")
        going_on.read(tmp_path / "case")


def test_a_tensor_in_the_place_of_another_is_refused(going_on: GoingOn, seeds: list[Files], tmp_path: Path) -> None:
    content = seeds[0]["state.json"]
    assert isinstance(content, bytes)
    one, other = (b"tensor:/stage/moments/0/" + name for name in (b"exp_avg", b"exp_avg_sq"))
    write_files(with_sums({**seeds[0], "state.json": content.replace(other, one)}), tmp_path / "case")
    with pytest.raises(
        ModelFileError, match=r"moments/0/exp_avg_sq: got 'tensor:/stage/moments/0/exp_avg', expected the"
    ):
        going_on.read(tmp_path / "case")


def test_a_tensor_that_nothing_names_is_refused(going_on: GoingOn, seeds: list[Files], tmp_path: Path) -> None:
    tensors = seeds[0]["tensors.safetensors"]
    assert isinstance(tensors, bytes)
    more = save({**load(tensors), "/stage/more": torch.zeros(1)})
    write_files(with_sums({**seeds[0], "tensors.safetensors": more}), tmp_path / "case")
    with pytest.raises(ModelFileError, match=r"has the tensor '/stage/more', which state\.json does not name"):
        going_on.read(tmp_path / "case")


def test_the_model_is_left_as_it_was(going_on: GoingOn, seeds: list[Files], tmp_path: Path) -> None:
    from smoothtune.training.checkpoint import read_checkpoint

    write_files(changed(seeds[-1], "stage.after", None), tmp_path / "case")
    run = going_on.stage()
    before = snapshot(run.model)
    run.goes_on_from = read_checkpoint(tmp_path / "case").state["stage"]
    with pytest.raises(
        ModelFileError, match=r"^stage together: .* after: got none.*; give the state of a run of this stage$"
    ):
        list(run.events())
    assert all(torch.equal(before[name], tensor) for name, tensor in snapshot(run.model).items())


@pytest.mark.usefixtures("own_cache")
def test_a_run_names_its_checkpoint(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    wanted = {**table(tiny_encoder), "runtime": {"checkpoint_every": 1}}
    run = tmp_path / "run"
    assert until_killed(lambda: train(wanted, data_dir=small_data, run_dir=run, listen=KillAt(3)))
    folder = max((run / "checkpoints").iterdir())
    files = read_files(folder)
    for path, value in (("stage.progress.seconds", "x"), ("stage.schedule.epoch", 2**62), ("run.told", [{}, {}])):
        write_files(changed(files, path, value), folder)
        with pytest.raises(
            ModelFileError, match=rf"^{folder}: .*{path.partition('.')[2]}: got .*; remove {folder} to go on"
        ):
            resume(run)
    write_files(files, folder)
    assert resume(run).evaluation is not None


@pytest.mark.parametrize("memory", [{"seen.x": -1}, {"seen.x": True}, {"other": 1}, {"memory.x": 1}])
def test_a_state_of_smoothness_is_checked_too(memory: dict[str, Any]) -> None:
    smooth = Smoothness()
    before = smooth.state_dict()
    with pytest.raises(
        UsageError, match=rf"^state: regulariser\.{next(iter(memory))}: got (int|bool), expected .*; give "
    ):
        smooth.load_state_dict({"seed": 1, "calls": 5, "regulariser": memory})
    assert smooth.state_dict() == before


def test_what_a_terminal_obeys_is_not_told_as_it_is(going_on: GoingOn, seeds: list[Files], tmp_path: Path) -> None:
    write_files(changed(seeds[0], "stage.progress.\x1b[2J", 1), tmp_path / "case")
    with pytest.raises(ModelFileError, match=r"stage\.progress\.\\x1b\[2J: got 1: extra inputs"):
        going_on.read(tmp_path / "case")


def test_inputs_of_the_fuzzing_differ_and_have_right_sums(seeds: list[Files], tmp_path: Path) -> None:
    from smoothtune.training.checkpoint import _sums

    made = [one_value_changed(seeds[0], seeds, random.Random(number)) for number in range(60)]
    assert made == [one_value_changed(seeds[0], seeds, random.Random(number)) for number in range(60)]
    assert len({repr(files) for files in made}) > 50
    whole = [files for files in made if all(isinstance(entry, bytes) for entry in files.values()) and len(files) == 3]
    assert len(whole) > 40
    for files in whole:
        write_files(files, tmp_path / "case")
        assert _sums(tmp_path / "case").encode() == read_files(tmp_path / "case")["SHA256SUMS"]
