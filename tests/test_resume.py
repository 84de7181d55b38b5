"""A run that was ended goes on to the bits that it would have reached, or says why it does not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from smoothtune.config.loading import load
from smoothtune.errors import ModelFileError, TerminatedError, UsageError
from smoothtune.training.checkpoint import _sums
from smoothtune.training.loop import StepReport
from smoothtune.workflow.evaluate import evaluate_run
from smoothtune.workflow.events import Interrupting, Resumed
from smoothtune.workflow.run_lock import RunLock
from smoothtune.workflow.train import resume, train
from tests.killing import KillAt, hard, metrics, same_run, until_killed
from tests.small_data import table, write_data

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def whole(tiny_encoder: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run that nobody ended, and how many steps and epochs it told of."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    counting = KillAt()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
        train(hard(tiny_encoder, every=False), data_dir=small_data, run_dir=folder, listen=counting)
    return folder, counting.count


@pytest.fixture
def cut(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> Path:
    """A run that was ended in its first stage, with a checkpoint after each step."""
    return killed(tiny_encoder, small_data, tmp_path / "cut", 9)


def killed(encoder: Path, data: Path, folder: Path, place: int, every: Any = 1) -> Path:
    wanted = hard(encoder, every=every)
    assert until_killed(lambda: train(wanted, data_dir=data, run_dir=folder, listen=KillAt(place)))
    return folder


def test_the_run_holds_what_is_hard_to_go_on_with(whole: tuple[Path, int]) -> None:
    folder, count = whole
    stages = json.loads((folder / "run.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == ["joint", "own"]
    assert count > 25
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("share", [0.02, 0.2, 0.45, 0.6, 0.85, 1.0])
def test_ended_anywhere_it_reaches_the_same_bits(
    whole: tuple[Path, int], tiny_encoder: Path, small_data: Path, tmp_path: Path, share: float
) -> None:
    place = max(1, round(share * whole[1]))
    run = killed(tiny_encoder, small_data, tmp_path / "run", place)
    resume(run)
    assert same_run(run, whole[0])
    assert not (run / "checkpoints").exists()


def test_ended_again_and_again(whole: tuple[Path, int], tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    run = killed(tiny_encoder, small_data, tmp_path / "run", 4, every=3)
    times = 0
    while until_killed(lambda: resume(run, listen=KillAt(7))):
        times += 1
    assert times > 2
    assert same_run(run, whole[0])
    resumed = json.loads((run / "run.json").read_text())["resumed"]
    assert [entry["differs"] for entry in resumed] == [[]] * len(resumed)
    assert len(resumed) >= times


def test_checkpoints_do_not_change_the_run(
    whole: tuple[Path, int], tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    train(hard(tiny_encoder), data_dir=small_data, run_dir=tmp_path / "run")
    assert same_run(tmp_path / "run", whole[0])


def test_kept_states_of_a_frozen_encoder(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    wanted = table(tiny_encoder, train=["trunks", "outputs"], stop={"max_epochs": 3})
    wanted["runtime"] = {"checkpoint_every": 1}
    train(wanted, data_dir=small_data, run_dir=tmp_path / "whole")
    assert until_killed(lambda: train(wanted, data_dir=small_data, run_dir=tmp_path / "cut", listen=KillAt(20)))
    resume(tmp_path / "cut")
    assert same_run(tmp_path / "cut", tmp_path / "whole")
    told = [json.loads((tmp_path / name / "run.json").read_text())["frozen"] for name in ("cut", "whole")]
    assert [len(stores) for stores in told] == [1, 1]


def test_encoders_of_transformers(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    wanted = table(tiny_encoder, stop={"max_epochs": 2})
    wanted["encoder"] |= {"implementation": "transformers", "dropout": 0.1, "attention_dropout": 0.1}
    wanted["runtime"] = {"checkpoint_every": 1}
    train(wanted, data_dir=small_data, run_dir=tmp_path / "whole")
    assert until_killed(lambda: train(wanted, data_dir=small_data, run_dir=tmp_path / "cut", listen=KillAt(11)))
    torch.manual_seed(9)
    resume(tmp_path / "cut")
    assert same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.fixture
def older(tiny_encoder: Path) -> dict[str, Any]:
    """An experiment that holds out dev rows as runs did before the key `hold_out`."""
    wanted = table(tiny_encoder, stop={"max_epochs": 2})
    for task in wanted["tasks"].values():
        task["dev"] = 0.3
    return {**wanted, "hold_out": "hashed", "runtime": {"checkpoint_every": 1}}


def as_before(run: Path) -> None:
    """Make `run` one that is older than the key; its checkpoints are already so."""
    path = run / "experiment.toml"
    path.write_text(path.read_text().replace('hold_out = "hashed"\n', ""))
    assert [
        file for file in run.rglob("*") if file.suffix in (".toml", ".json") and "hold_out" in file.read_text()
    ] == []


def test_a_run_from_before_hold_out_keeps_its_dev_rows(older: dict[str, Any], small_data: Path, tmp_path: Path) -> None:
    whole = train(older, data_dir=small_data, run_dir=tmp_path / "whole")
    for name in ("cut", "same"):
        assert until_killed(
            lambda name=name: train(older, data_dir=small_data, run_dir=tmp_path / name, listen=KillAt(9))
        )
        as_before(tmp_path / name)
    assert resume(tmp_path / "cut").experiment.hold_out == "hashed"
    del older["hold_out"]  # what a scheduler gives again
    events: list[Any] = []
    given = load(older).experiment
    train(given, data_dir=small_data, run_dir=tmp_path / "same", resume=True, listen=events.append)
    assert [event.differs for event in events if isinstance(event, Resumed)] == [()]
    assert same_run(tmp_path / "cut", tmp_path / "whole")
    assert same_run(tmp_path / "same", tmp_path / "whole")
    as_before(tmp_path / "whole")
    assert evaluate_run(tmp_path / "whole").to_json() == whole.evaluation
    assert train(older, data_dir=small_data, run_dir=tmp_path / "whole", resume=True).evaluation == whole.evaluation
    stratified = train(older, data_dir=small_data, run_dir=tmp_path / "new").evaluation
    assert stratified != whole.evaluation


def test_another_hold_out_is_refused(older: dict[str, Any], small_data: Path, tmp_path: Path) -> None:
    assert until_killed(lambda: train(older, data_dir=small_data, run_dir=tmp_path / "cut", listen=KillAt(9)))
    older["hold_out"] = "stratified"
    with pytest.raises(UsageError, match=r"hold_out: nothing then, stratified now"):
        train(older, data_dir=small_data, run_dir=tmp_path / "cut", resume=True)


# what is told


def test_it_tells_where_it_goes_on(cut: Path) -> None:
    events: list[Any] = []
    resume(cut, listen=events.append)
    (told,) = [event for event in events if isinstance(event, Resumed)]
    assert (told.checkpoint, told.stage, told.step) == (cut / "checkpoints" / "000007", "joint", 7)
    assert (told.damaged, told.differs) == ((), ())
    steps = [event.step for event in events if isinstance(event, StepReport) and event.stage == "joint"]
    assert steps[0] == 8


def test_the_last_two_checkpoints_are_kept(cut: Path) -> None:
    assert [path.name for path in sorted((cut / "checkpoints").iterdir())] == ["000006", "000007"]


def test_a_finished_run_is_returned_as_it_is(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    wanted = table(tiny_encoder, stop={"max_epochs": 1})
    first = train(wanted, data_dir=small_data, run_dir=tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    again = resume(tmp_path / "run", listen=_never)
    assert (again.evaluation, again.interrupted) == (first.evaluation, False)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def _never(event: Any) -> None:
    raise AssertionError(event)


def test_without_a_checkpoint_it_starts_over(
    whole: tuple[Path, int], tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    run = killed(tiny_encoder, small_data, tmp_path / "run", 20, every=False)
    (run / ".model.abc.part").mkdir()
    events: list[Any] = []
    resume(run, listen=events.append)
    (told,) = [event for event in events if isinstance(event, Resumed)]
    assert told.checkpoint is None
    assert same_run(run, whole[0])
    assert not list(run.glob(".*.part"))


def test_train_with_resume_begins_goes_on_and_ends(
    whole: tuple[Path, int], tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    wanted, run = hard(tiny_encoder), tmp_path / "run"

    def go(listen: Any = lambda _: None) -> Any:
        return train(wanted, data_dir=small_data, run_dir=run, resume=True, listen=listen)

    assert until_killed(lambda: go(KillAt(12)))
    go()
    assert same_run(run, whole[0])
    assert go(_never).evaluation is not None


# what is refused


def test_what_has_changed_is_named(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    data = shutil.copytree(small_data, tmp_path / "data")
    run = killed(tiny_encoder, data, tmp_path / "run", 9)
    write_data(data, seed=4)
    with pytest.raises(
        UsageError, match=r"the data are not those that the run began with \(mood\.train\.content"
    ) as found:
        resume(run)
    assert f"smoothtune resume {run} --allow data" in str(found.value)
    events: list[Any] = []
    resume(run, allow=["data"], listen=events.append)
    (told,) = [event for event in events if isinstance(event, Resumed)]
    assert len(told.differs) == 1
    assert json.loads((run / "run.json").read_text())["resumed"][0]["differs"] == list(told.differs)


def test_another_experiment_is_refused(cut: Path, tiny_encoder: Path, small_data: Path) -> None:
    wanted = hard(tiny_encoder)
    wanted["stages"][0]["batch_size"] = 4
    with pytest.raises(
        UsageError, match=r"\(stages\.0\.batch_size: 8 then, 4 now.*the same command and --allow configuration"
    ):
        train(wanted, data_dir=small_data, run_dir=cut, resume=True)
    wanted = hard(tiny_encoder, every={"minutes": 1})  # how often it writes changes no bit
    train(wanted, data_dir=small_data, run_dir=cut, resume=True)


def test_another_encoder_or_tokenizer_is_noticed(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    encoder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    run = killed(encoder, small_data, tmp_path / "run", 9)
    path = encoder / "tokenizer.json"
    text = path.read_text()
    found = json.loads(text)
    *_, one, other = (word for word, number in sorted(found["model"]["vocab"].items(), key=lambda item: item[1]))
    vocabulary = found["model"]["vocab"]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(found))
    with pytest.raises(UsageError, match=r"the pretrained encoder is not the one .*\(tokenizer: .*--allow encoder"):
        resume(run)
    path.write_text(text)
    assert resume(run).evaluation is not None


def test_an_experiment_edited_in_the_run_is_noticed(cut: Path) -> None:
    path = cut / "experiment.toml"
    path.write_text(path.read_text().replace("warmup = 0.1\n", "warmup = 0.2\n"))
    with pytest.raises(UsageError, match=r"\(stages\.0\.warmup: 0\.1 then, 0\.2 now"):
        resume(cut)


def test_other_kernels_and_formats_are_named(cut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smoothtune.workflow.identity.told", lambda device: "off: tried")
    with pytest.raises(UsageError, match=r"another kind of device .*kernels: .* --allow device"):
        resume(cut)
    monkeypatch.undo()
    monkeypatch.setattr("smoothtune.workflow.earlier.FORMAT", 2)
    with pytest.raises(UsageError, match=r"another release's format \(1 then, 2 now\)"):
        resume(cut)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ({"run_dir": None, "resume": True}, "--resume: give the folder of the run with --run-dir"),
        ({"allow": ["data"]}, "--allow: is for runs that go on; give --resume as well"),
        ({"resume": True, "allow": ["time"]}, "--allow time: there is no such kind; take one of data, configuration"),
    ],
)
def test_options_that_do_not_go_together(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, call: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        train(hard(tiny_encoder), **{"data_dir": small_data, "run_dir": tmp_path / "run", **call})


def test_folders_that_are_no_run(tmp_path: Path, tiny_encoder: Path, small_data: Path) -> None:
    with pytest.raises(UsageError, match="there is no such run folder"):
        resume(tmp_path / "none")
    with pytest.raises(ModelFileError, match="is not a run folder"):
        resume(tmp_path)
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UsageError, match=r"is there and is not a run folder \(it has no experiment\.toml\)"):
        train(hard(tiny_encoder), data_dir=small_data, run_dir=tmp_path, resume=True)


def test_a_second_process_is_refused_and_a_lock_left_behind_is_none(cut: Path) -> None:
    assert (cut / ".lock").exists()
    with RunLock(cut), pytest.raises(UsageError, match=rf"process {os.getpid()} on .* is at work on this run"):
        resume(cut)
    resume(cut)


# damage


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors", "SHA256SUMS"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_used(whole: tuple[Path, int], cut: Path, name: str) -> None:
    path = cut / "checkpoints" / "000007" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    events: list[Any] = []
    resume(cut, listen=events.append)
    (told,) = [event for event in events if isinstance(event, Resumed)]
    assert told.checkpoint == cut / "checkpoints" / "000006"
    assert len(told.damaged) == 1
    assert name in told.damaged[0]
    assert same_run(cut, whole[0])


def test_when_all_are_damaged_it_says_so(cut: Path) -> None:
    for folder in (cut / "checkpoints").iterdir():
        (folder / "state.json").unlink()
    with pytest.raises(ModelFileError, match=r"no other checkpoint is whole: remove .* to start over"):
        resume(cut)


def test_metrics_that_lost_lines_are_noticed(cut: Path, tiny_encoder: Path, small_data: Path) -> None:
    shutil.rmtree(cut)
    killed(tiny_encoder, small_data, cut, 12)
    (cut / "metrics.jsonl").write_text("")
    with pytest.raises(ModelFileError, match=r"metrics\.jsonl: has 0 bytes, the checkpoint was written after"):
        resume(cut)
    (cut / "metrics.jsonl").write_text("x" * 100_000)
    with pytest.raises(
        ModelFileError, match=r"metrics\.jsonl: no line ends at byte \d+, after which the checkpoint was"
    ):
        resume(cut)


@pytest.mark.parametrize("name", ["", "state.json", "SHA256SUMS"])
def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_damaged(
    cut: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    newest, before = cut / "checkpoints" / "000007", contents(cut)
    place, find, read = newest / name, Path.iterdir, Path.open

    def refuse(path: Path) -> None:
        if path == (place if name else newest.parent):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "iterdir", lambda path: (refuse(path), find(path))[1])
    monkeypatch.setattr(Path, "open", lambda path, *given, **named: (refuse(path), read(path, *given, **named))[1])
    with pytest.raises(
        UsageError, match=r": cannot be read: Permission denied; give the user of this process the right"
    ):
        resume(cut)
    monkeypatch.undo()
    assert contents(cut) == before


def test_a_longer_stage_goes_on_where_that_is_allowed(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    run, wanted = tmp_path / "run", table(tiny_encoder, stop={"max_epochs": 1})
    wanted["runtime"] = {"checkpoint_every": 1}
    count = KillAt()
    train(wanted, data_dir=small_data, run_dir=tmp_path / "whole", listen=count)
    assert until_killed(lambda: train(wanted, data_dir=small_data, run_dir=run, listen=KillAt(count.count - 1)))
    wanted["stages"][0]["stop"]["max_epochs"] = 2
    with pytest.raises(UsageError, match=r"max_epochs: 1 then, 2 now"):
        train(wanted, data_dir=small_data, run_dir=run, resume=True)
    train(wanted, data_dir=small_data, run_dir=run, resume=True, allow=["configuration"])
    assert [line["epoch"] for line in metrics(run)] == [1, 2]


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def test_what_cannot_go_on_is_left_as_it_was(cut: Path, tiny_encoder: Path, small_data: Path) -> None:
    wanted, before = hard(tiny_encoder), contents(cut)
    wanted["trunks"]["pair"]["depth"] = 2
    with pytest.raises(ModelFileError):
        train(wanted, data_dir=small_data, run_dir=cut, resume=True, allow="configuration")
    assert contents(cut) == before


@pytest.mark.parametrize("harm", ["flip", "remove", "link"])
def test_a_stage_model_that_is_another_one_is_noticed(
    whole: tuple[Path, int], tiny_encoder: Path, small_data: Path, tmp_path: Path, harm: str
) -> None:
    run = killed(tiny_encoder, small_data, tmp_path / "run", whole[1] - 2)
    path = run / "stages" / "joint" / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    if harm == "flip":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif harm == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    said = {"flip": "is not as the run wrote it", "remove": "No such file", "link": "leads out of its folder"}[harm]
    advice = rf"the run needs its model after stage joint: put it back, or remove {run}/checkpoints to start over"
    with pytest.raises(ModelFileError, match=rf"{path}: .*{said}.*{advice}"):
        resume(run)
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    resume(run)
    assert same_run(run, whole[0])


@pytest.mark.parametrize("change", [{"depth": 2}, {"dropout": 0.9}])
def test_a_later_stage_does_not_go_on_with_another_model(
    whole: tuple[Path, int], tiny_encoder: Path, small_data: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    run = killed(tiny_encoder, small_data, tmp_path / "run", whole[1] - 2)
    wanted, before = hard(tiny_encoder), contents(run)
    wanted["trunks"]["pair"] |= change
    with pytest.raises(UsageError, match=rf"{run}/stages/joint: is a model of other .* trunks, .*put them back"):
        train(wanted, data_dir=small_data, run_dir=run, resume=True, allow=["configuration"])
    assert contents(run) == before


def test_other_labels_are_refused_whatever_is_allowed(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    data = shutil.copytree(small_data, tmp_path / "data")
    run = killed(tiny_encoder, data, tmp_path / "run", 9)
    before, path = contents(run), data / "mood.train.tsv"
    path.write_text(path.read_text().replace("beast", "zebra"))
    dev = data / "mood.dev.tsv"
    dev.write_text(dev.read_text().replace("beast", "zebra"))
    with pytest.raises(UsageError, match=r"the labels of task mood are not those that the run began with"):
        resume(run, allow=["data"])
    assert contents(run) == before


def test_a_checkpoint_of_another_format_is_called_that(cut: Path) -> None:
    for folder in (cut / "checkpoints").iterdir():
        path = folder / "state.json"
        path.write_text(path.read_text().replace('"format": 1', '"format": 9', 1))
        (folder / "SHA256SUMS").write_text(_sums(folder))
    with pytest.raises(UsageError, match=r"another release's format \(9 then, 1 now\).*--allow format"):
        resume(cut)
    assert resume(cut, allow="format").evaluation is not None


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "stages"])
def test_links_out_of_the_run_are_refused(cut: Path, tmp_path: Path, name: str) -> None:
    place, elsewhere = cut / name, tmp_path / "elsewhere"
    if place.exists():
        place.rename(elsewhere)
    place.symlink_to(elsewhere)
    with pytest.raises(ModelFileError, match=rf"{place}: is a link; .* put what it leads to in its place"):
        resume(cut)


def test_a_finished_run_is_not_taken_for_another_experiment(
    whole: tuple[Path, int], tiny_encoder: Path, small_data: Path
) -> None:
    wanted = hard(tiny_encoder, every=False)
    wanted["seed"] = 77
    with pytest.raises(
        UsageError, match=r"the run is finished, and its experiment is another one; give another --run-dir"
    ):
        train(wanted, data_dir=small_data, run_dir=whole[0], resume=True, allow=["configuration"])


def test_data_and_encoder_that_have_moved(
    whole: tuple[Path, int], tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    data, encoder = shutil.copytree(small_data, tmp_path / "data"), shutil.copytree(tiny_encoder, tmp_path / "encoder")
    run = killed(encoder, data, tmp_path / "run", 9)
    for folder in (data, encoder):
        folder.rename(tmp_path / f"moved-{folder.name}")
    with pytest.raises(
        UsageError, match=r"encoder.name = .*/encoder, tasks\.mood\.train = .*; put that back, or write its new"
    ):
        resume(run)
    path = run / "experiment.toml"
    path.write_text(path.read_text().replace(str(tmp_path / "data"), str(tmp_path / "moved-data")))
    path.write_text(path.read_text().replace(str(tmp_path / "encoder"), str(tmp_path / "moved-encoder")))
    resume(run)
    assert metrics(run) == metrics(whole[0])


def test_a_run_knows_its_encoder_in_every_folder(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_encoder.parent)
    run = killed(Path(tiny_encoder.name), small_data, tmp_path / "run", 3)
    monkeypatch.chdir(tmp_path)
    assert resume(run).experiment.encoder.name == str(tiny_encoder)


def test_the_command_to_go_on_is_ready_for_a_shell(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    def listen(event: Any) -> None:
        if isinstance(event, StepReport):
            signal.raise_signal(signal.SIGTERM)

    run = tmp_path / "my first run"
    with pytest.raises(TerminatedError, match=rf"go on with: smoothtune resume '{run}'$"):
        train(hard(tiny_encoder), data_dir=small_data, run_dir=run, listen=listen)


def test_a_folder_in_which_nothing_came_to_be_written_is_taken(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".experiment.toml.abc.part").write_text("half")
    assert train(table(tiny_encoder), data_dir=small_data, run_dir=tmp_path / "run", resume=True).evaluation is not None


# signals


def test_sigterm_leaves_a_checkpoint_of_the_last_step(
    whole: tuple[Path, int], tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    run, steps = tmp_path / "run", []

    def listen(event: Any) -> None:
        if isinstance(event, StepReport):
            steps.append(event.step)
            if len(steps) == 5:
                signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TerminatedError, match=rf"ended by SIGTERM; the last checkpoint is .*000001; .*resume {run}"):
        train(hard(tiny_encoder, every={"epochs": 0}), data_dir=small_data, run_dir=run, listen=listen)
    assert signal.getsignal(signal.SIGTERM) is before
    assert steps == [1, 2, 3, 4, 5]
    events: list[Any] = []
    resume(run, listen=events.append)
    assert next(event for event in events if isinstance(event, StepReport)).step == 6
    assert same_run(run, whole[0])


@pytest.mark.parametrize("every", [{"epochs": 0}, 1, False])
def test_ctrl_c_ends_after_the_step_with_a_checkpoint(
    whole: tuple[Path, int], tiny_encoder: Path, small_data: Path, tmp_path: Path, every: Any
) -> None:
    told: list[Any] = []

    def listen(event: Any) -> None:
        if isinstance(event, StepReport) and event.step == 7:
            signal.raise_signal(signal.SIGINT)
        told.append(event)

    run = train(hard(tiny_encoder, every=every), data_dir=small_data, run_dir=tmp_path / "run", listen=listen)
    assert run.interrupted
    assert [event for event in told if isinstance(event, Interrupting)] == [Interrupting(every is not False, True)]
    assert max(event.step for event in told if isinstance(event, StepReport)) == 7
    events: list[Any] = []
    assert resume(run.folder, listen=events.append).evaluation is not None
    steps = [event.step for event in events if isinstance(event, StepReport)]
    assert steps[0] == (1 if every is False else 8)
    assert same_run(run.folder, whole[0])


def test_a_second_ctrl_c_ends_at_once(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    def listen(event: Any) -> None:
        if isinstance(event, StepReport) and event.step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("it went on")

    run = train(hard(tiny_encoder, every={"epochs": 0}), data_dir=small_data, run_dir=tmp_path / "run", listen=listen)
    assert run.interrupted
    assert not (run.folder / "checkpoints").exists()


def test_the_program_ends_with_143_and_goes_on(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    wanted = table(tiny_encoder, stop={"max_epochs": 2000})
    (tmp_path / "long.toml").write_text(tomli_w.dumps(wanted))
    run = tmp_path / "run"
    program = [sys.executable, "-m", "smoothtune"]
    begin = [*program, "train", str(tmp_path / "long.toml"), "--data-dir", str(small_data), "--run-dir", str(run)]
    with subprocess.Popen(begin, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as child:
        while not (run / "metrics.jsonl").exists():
            assert child.poll() is None
            time.sleep(0.05)
        child.terminate()
        _, said = child.communicate(timeout=60)
    assert child.returncode == 143
    assert f"smoothtune: {run}: ended by SIGTERM; the last checkpoint is {run}/checkpoints/000" in said
    assert said.endswith(f"go on with: smoothtune resume {run}\n")
    events: list[Any] = []
    assert until_killed(lambda: resume(run, listen=lambda event: (events.append(event), KillAt(1)(event))))
    (told,) = [event for event in events if isinstance(event, Resumed)]
    assert told.step > 0
