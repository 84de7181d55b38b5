"""The probe: what a run says of its regularisers, and that saying it changes no bit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smoothtune.cli.probe_lines import loss_text, probe_lines
from smoothtune.cli.watcher import Watcher
from smoothtune.config.regularisers import (
    FreelbOptions,
    ProximalOptions,
    R3fOptions,
    RDropOptions,
    RegulariserOptions,
    SmoothnessOptions,
    VatOptions,
)
from smoothtune.objective.look import Regulariser
from smoothtune.objective.measuring import Search, _surviving, rescaled, search_of
from smoothtune.objective.perturbation import norms
from smoothtune.objective.regularisers import build_regularisers
from smoothtune.objective.weighting import TaskFacts, WeightingProduct
from smoothtune.training.notices import Notice, Notices
from smoothtune.training.probe import ROWS, Probe, Records, probe_batch
from smoothtune.training.step import StepModule
from smoothtune.workflow.train import train
from tests.small_data import TASKS, Prepared, changed, epochs, prepare, snapshot, steps, table

RATE = 0.2
EXACT = SmoothnessOptions(radius=0.03)
WANG = SmoothnessOptions(preset="wang", name="wang")
EVERY_KIND = (
    EXACT,
    ProximalOptions(),
    RDropOptions(),
    R3fOptions(),
    VatOptions(),
    FreelbOptions(),
    SmoothnessOptions(name="some", preset="cheap", every=2, warmup=0.5),
)
TIMES = {"seconds_plain", "seconds_with"}
FOUND = {"random", "adversarial", "norm", "surviving", "norm_needed"}
Make = Callable[..., Prepared]


def built(*options: RegulariserOptions) -> tuple[Regulariser, ...]:
    return build_regularisers(options, depth=2)


@pytest.fixture(params=["native", "transformers"])
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(tiny_encoder: Path, small_data: Path, shared_cache: Path) -> Make:
    """The small experiment with dropout everywhere and batch norm in the pair trunk."""

    def made(implementation: str = "native", **stage: Any) -> Prepared:
        options = table(tiny_encoder, trunk={"kind": "pwim_resnet", "depth": 1, "dropout": RATE}, **stage)
        options["trunks"]["single"]["dropout"] = RATE
        options["encoder"] |= {"implementation": implementation, "dropout": RATE, "attention_dropout": RATE}
        return prepare(options, small_data, shared_cache)

    return made


def probe_of(
    prepared: Prepared, *regularisers: Regulariser, dtype: torch.dtype = torch.float32, tasks: Sequence[str] = TASKS
) -> Probe:
    facts = {name: TaskFacts(40, 1.0) for name in TASKS}
    module = StepModule(prepared.model, WeightingProduct(("none",), facts), dtype=dtype, regularisers=regularisers)
    trained = [part for part in prepared.model.parameters() if part.requires_grad]
    return Probe(module, trained, {name: probe_batch(prepared.train[name], 8, 3) for name in tasks}, 3, "together")


# it changes nothing


def told(prepared: Prepared) -> tuple[list[Any], dict[str, torch.Tensor], list[dict[str, Any]], torch.Tensor]:
    """A run with every kind of regulariser: losses, weights in the end, memories, the global generator."""
    torch.manual_seed(0)
    regularisers = built(*EVERY_KIND)
    events = list(prepared.run(regularisers=regularisers).events())
    assert [bool(event.probe) for event in epochs(events)] == [Probe.__call__ is _PROBE] * 2
    losses = [(step.losses, step.rate) for step in steps(events)]
    memories = [regulariser.state_dict() for regulariser in regularisers]
    return losses, snapshot(prepared.model), memories, torch.get_rng_state()


_PROBE = Probe.__call__


def test_a_run_with_probes_is_a_run_without_to_the_bit(
    make: Make, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_probes = told(make(implementation, batch_size=20))
    monkeypatch.setattr(Probe, "__call__", lambda self, step, progress: {})
    without = told(make(implementation, batch_size=20))
    assert with_probes[0] == without[0]
    assert with_probes[1].keys() == without[1].keys()
    assert all(torch.equal(tensor, without[1][name]) for name, tensor in with_probes[1].items())
    for mine, other in zip(with_probes[2], without[2], strict=True):
        assert mine.keys() == other.keys()
        assert all(_same(mine[key], other[key]) for key in mine)
    assert torch.equal(with_probes[3], without[3])


def _same(mine: Any, other: Any) -> bool:
    return torch.equal(mine, other) if isinstance(mine, torch.Tensor) else bool(mine == other)


def test_a_probe_leaves_modes_gradients_weights_and_statistics_as_they_were(make: Make, implementation: str) -> None:
    prepared = make(implementation)
    prepared.model.eval()
    prepared.model.trunks["pair"].train()
    gradients = {name: torch.full_like(part, 0.5) for name, part in prepared.model.named_parameters()}
    for name, part in prepared.model.named_parameters():
        part.grad = gradients[name]
    before, modes = snapshot(prepared.model), [part.training for part in prepared.model.modules()]
    regularisers = built(*EVERY_KIND)
    assert probe_of(prepared, *regularisers)(5, 0.3)
    assert not changed(prepared.model, before)
    assert [part.training for part in prepared.model.modules()] == modes
    for name, part in prepared.model.named_parameters():
        assert part.grad is gradients[name]
        assert bool((gradients[name] == 0.5).all())


def test_a_probe_is_the_same_each_time_and_another_at_another_step(make: Make) -> None:
    probe = probe_of(make(), *built(EXACT, WANG, RDropOptions()))
    first, again, later = (_untimed(probe(step, 0.5)) for step in (4, 4, 5))
    assert first == again
    assert first != later


def _untimed(records: Records) -> dict[str, dict[str, dict[str, float]]]:
    return {
        task: {name: {key: part[key] for key in part if key not in TIMES} for name, part in found.items()}
        for task, found in records.items()
    }


# the batch


def test_the_batch_is_chosen_by_the_seed_alone_and_never_larger_than_a_step(make: Make) -> None:
    examples = make().train["mood"]
    batch = probe_batch(examples, 100, seed=3)
    assert len(batch) == ROWS == 32
    assert len(set(batch.rows.tolist())) == 32
    assert torch.equal(probe_batch(examples, 100, seed=3).rows, batch.rows)
    assert not torch.equal(probe_batch(examples, 100, seed=4).rows, batch.rows)
    assert torch.equal(probe_batch(examples, 8, seed=3).rows, batch.rows[:8])
    few = replace(examples, chosen=examples.chosen[:5])
    assert sorted(probe_batch(few, 100, seed=3).rows.tolist()) == examples.lines[examples.chosen[:5]].tolist()


# what it says


def test_a_search_is_told_in_full_and_agrees_with_the_term(make: Make, implementation: str) -> None:
    records = probe_of(make(implementation), *built(EXACT))(5, 0.5)
    assert list(records) == list(TASKS)
    for found in records.values():
        record = found["smoothness"]
        assert set(record) == {"dropout", "as_used"} | FOUND | TIMES
        assert record["adversarial"] > record["random"] > 0
        assert record["dropout"] > 0
        assert record["as_used"] == record["adversarial"]  # the same masks, rows and dtype: the term itself
        assert record["norm"] == pytest.approx(0.03, rel=1e-6)
        assert record["surviving"] == 1.0
        assert 0 < record["norm_needed"] < 1e-5
        assert all(record[key] > 0 for key in TIMES)


def test_with_masks_of_its_own_the_term_as_used_is_dropout(make: Make) -> None:
    record = probe_of(make(), *built(WANG), tasks=["mood"])(5, 0.5)["mood"]["wang"]
    assert record["norm"] == pytest.approx(1e-5, rel=1e-6)
    assert record["dropout"] > 100 * record["adversarial"]
    assert record["as_used"] > 100 * record["adversarial"]


def test_without_dropout_in_the_model_the_dropout_part_is_nothing(
    tiny_encoder: Path, small_data: Path, shared_cache: Path
) -> None:
    prepared = prepare(table(tiny_encoder), small_data, shared_cache)
    options = (EXACT, SmoothnessOptions(name="off", dropout="off"), VatOptions())
    for found in probe_of(prepared, *built(*options))(5, 0.5).values():
        assert [record["dropout"] for record in found.values()] == [0.0] * 3
        assert all(record["adversarial"] > 0 for record in found.values())


def test_vat_is_measured_by_its_own_norm(make: Make) -> None:
    for found in probe_of(make(), *built(VatOptions(radius=0.5)))(5, 0.5).values():
        assert set(found["vat"]) == {"dropout", "as_used"} | FOUND | TIMES
        assert found["vat"]["norm"] == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("options", [RDropOptions(), ProximalOptions()])
def test_what_searches_for_nothing_tells_its_value_dropout_and_cost(make: Make, options: RegulariserOptions) -> None:
    regularisers = built(options)
    assert search_of(regularisers[0]) is None
    record = probe_of(make(), *regularisers, tasks=["same"])(5, 0.5)["same"][options.kind]
    assert set(record) == {"dropout", "as_used"} | TIMES
    assert math.isfinite(record["as_used"])


def test_the_ascent_of_freelb_is_told_as_its_search(make: Make) -> None:
    for dtype, survives in ((torch.bfloat16, False), (torch.float32, True)):
        options = FreelbOptions(radius=1e-3, noise=1e-4, step_size=1e-4)
        record = probe_of(make(), *built(options), tasks=["same"], dtype=dtype)(5, 0.5)["same"]["freelb"]
        assert set(record) == {"dropout", "as_used"} | FOUND | TIMES
        assert 0.5e-4 < record["norm"] <= 2.001e-4  # a step from noise of at most 1e-4
        assert (record["surviving"] > 0.5) == survives


def test_a_term_that_looks_rarely_says_so_beside_its_cost(make: Make) -> None:
    regularisers = built(SmoothnessOptions(name="cheap", preset="cheap"), SmoothnessOptions())
    found = probe_of(make(), *regularisers, tasks=["same"])(5, 0.5)["same"]
    assert found["cheap"]["every"] == 5
    assert "every" not in found["smoothness"]


def test_only_the_tasks_of_a_regulariser_are_probed(make: Make) -> None:
    records = probe_of(make(), *built(SmoothnessOptions(tasks=("mood",)), VatOptions(tasks=("mood", "near"))))(5, 0.5)
    assert {task: list(found) for task, found in records.items()} == {"mood": ["smoothness", "vat"], "near": ["vat"]}
    assert probe_of(make())(5, 0.5) == {}


def test_a_small_radius_is_lost_in_bfloat16_and_not_in_float32(make: Make) -> None:
    lost, kept = WANG, WANG.model_copy(update={"name": "kept", "precision": "float32"})
    made = make()
    alone = [probe_of(made, *built(one), dtype=torch.bfloat16)(5, 0.5) for one in (lost, kept)]
    for task in TASKS:
        found = {**alone[0][task], **alone[1][task]}
        assert RATE / 2 < found["wang"]["surviving"] < 2 * RATE  # what dropout has set to 0 takes anything
        assert found["kept"]["surviving"] > 0.9
        assert found["wang"]["norm_needed"] > 100 * found["wang"]["norm"]
        assert found["kept"]["norm_needed"] < found["kept"]["norm"]


def test_beside_one_that_asks_for_float32_all_are_probed_as_their_steps_run(make: Make) -> None:
    kept = WANG.model_copy(update={"name": "kept", "precision": "float32"})
    for found in probe_of(make(), *built(WANG, kept), dtype=torch.bfloat16)(5, 0.5).values():
        assert found["wang"]["surviving"] > 0.9


def test_a_term_that_looks_rarely_does_not_speak_for_the_steps_without_it(make: Make) -> None:
    rare = R3fOptions(name="rare", precision="float32", every=4)
    for found in probe_of(make(), *built(WANG, rare), dtype=torch.bfloat16)(5, 0.5).values():
        assert found["wang"]["surviving"] < 0.5
        assert found["rare"]["surviving"] > 0.9


def test_the_draw_of_r3f_is_told_as_its_search(make: Make) -> None:
    for dtype, survives in ((torch.bfloat16, False), (torch.float32, True)):
        record = probe_of(make(), *built(R3fOptions()), tasks=["same"], dtype=dtype)(5, 0.5)["same"]["r3f"]
        assert (record["surviving"] > 0.5) == survives
        assert record["norm"] <= 1e-5


@pytest.mark.parametrize(("dtype", "lost"), [(torch.float32, 2.0**-25), (torch.bfloat16, 2.0**-9)])
def test_an_entry_survives_if_it_moves_the_state_in_the_compute_dtype(dtype: torch.dtype, lost: float) -> None:
    states = torch.tensor([[[1.0, 1.5, -1.25, 1.75]]])
    share, factor = _surviving(torch.tensor([[[lost, -2 * lost, 8 * lost, 0.0]]]), states, dtype)
    assert share == pytest.approx(1 / 3)
    assert factor == pytest.approx(1.0)
    same, _ = _surviving(torch.full_like(states, 4 * lost), states, dtype)
    assert same == 1.0
    at_zero, _ = _surviving(torch.full_like(states, 1e-9), torch.zeros_like(states), dtype)
    assert at_zero == 1.0
    assert _surviving(torch.full_like(states, lost), torch.zeros_like(states), dtype)[1] == 0.0
    assert all(math.isnan(value) for value in _surviving(torch.zeros_like(states), states, dtype))


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("per", ["token", "text"])
def test_the_random_direction_has_the_very_norms_of_what_was_found(norm: Any, per: Any) -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    draw = torch.Generator().manual_seed(1)
    found = torch.randn(2, 3, 5, generator=draw) * torch.rand(2, 3, 1, generator=draw) * mask[..., None]
    search = Search(lambda look: found, 0, norm, per, "shared")
    random = rescaled(torch.randn(2, 3, 5, generator=draw), found, mask, search)
    torch.testing.assert_close(norms(random, mask, norm, per), norms(found, mask, norm, per), rtol=1e-6, atol=0)
    assert not random[~mask].any()
    assert not torch.equal(random, found)
    assert not rescaled(torch.zeros(2, 3, 5), found, mask, search).any()


# notices


RECORD = {
    "dropout": 0.4,
    "random": 1e-9,
    "adversarial": 1e-6,
    "norm": 1e-5,
    "surviving": 0.031,
    "norm_needed": 0.00183,
    "as_used": 0.4,
    "seconds_plain": 0.12,
    "seconds_with": 0.31,
}
FINE = {**RECORD, "adversarial": 0.1, "surviving": 1.0}


def dtype_of(name: str) -> Any:
    return lambda regulariser, task: getattr(torch, regulariser.precision or name)


def notices(records: Mapping[str, Mapping[str, float]], options: RegulariserOptions, dtype: str = "bfloat16") -> Any:
    return [
        notice
        for notice in Notices("together", built(options), dtype_of(dtype)).new(
            {task: {options.label: dict(record)} for task, record in records.items()}
        )
    ]


def test_what_is_lost_and_what_is_r_drop_is_said_with_what_to_change() -> None:
    lost, drowned = notices({"sst": RECORD, "sts": FINE}, WANG)
    assert (lost.stage, lost.regulariser, lost.tasks) == ("together", "wang", ("sst",))
    assert lost.text == (
        "the perturbation of norm 1e-05 is lost in bfloat16: 3 % of its entries survive; "
        'set precision = "float32" for this regulariser, or a radius of about 0.002 or more'
    )
    assert str(drowned) == (
        "stage together, wang (sst): two passes that differ in dropout alone lie 400,000 times further apart than the "
        "perturbed pass from the clean one under the same masks: the term is in truth R-Drop; use "
        'kind = "r_drop" for that (second_loss = false, and twice the weight but for regression, make it as strong), or else '
        'set dropout = "shared" and a radius larger than 1e-05 '
        '(in smoothness, preset = "exact" has both)'
    )


def test_in_float32_only_a_larger_radius_helps() -> None:
    options = WANG.model_copy(update={"precision": "float32"})
    lost, _ = notices({"sst": RECORD}, options)
    assert lost.text.endswith("lost in float32: 3 % of its entries survive; set a radius of about 0.002 or more")


@pytest.mark.parametrize("masks", ["shared", "off"])
def test_where_masks_are_shared_a_drowned_term_is_not_called_r_drop(masks: Any) -> None:
    (notice,) = notices({"sst": {**RECORD, "surviving": 1.0}}, SmoothnessOptions(radius=1e-5, dropout=masks))
    assert "R-Drop" not in notice.text
    assert notice.text.endswith(
        "beside what dropout does, the term asks for next to nothing; "
        "set a radius larger than 1e-05, or leave the term out"
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (R3fOptions(dropout="shared"), "set a noise larger than 1e-05,"),
        (SmoothnessOptions(radius=0.01, step_size=1e-3), "set a step_size larger than 1e-05,"),
        (SmoothnessOptions(radius=1e-5), "set a radius larger than 1e-05,"),
        (FreelbOptions(radius=1.0, dropout="independent"), "set a step_size larger than 1e-05,"),
    ],
)
def test_what_has_to_grow_is_called_by_its_own_key(options: RegulariserOptions, told: str) -> None:
    (notice,) = notices({"sst": {**RECORD, "surviving": 1.0}}, options)
    assert told in notice.text
    (lost,) = notices({"sst": {**FINE, "surviving": 0.1}}, options)
    key = told.split()[2]
    assert lost.text.endswith(f"or a {key} of about 0.002 or more")


def test_a_dtype_of_its_own_on_some_tasks_is_told_apart() -> None:
    dtypes = {"sst": torch.float32, "sts": torch.bfloat16}
    watch = Notices("together", built(SmoothnessOptions()), lambda _, task: dtypes[task])
    said = list(watch.new({task: {"smoothness": {**FINE, "surviving": 0.1}} for task in dtypes}))
    assert [notice.tasks for notice in said] == [("sst",), ("sts",)]
    assert "lost in float32" in said[0].text
    assert "lost in bfloat16" in said[1].text


def test_a_perturbation_that_does_nothing_at_all_divides_by_nothing() -> None:
    (notice,) = notices({"sst": {**RECORD, "adversarial": 0.0, "surviving": 1.0}}, WANG)
    assert notice.text.startswith("two passes that differ in dropout alone lie apart, and the perturbed pass does not")


@pytest.mark.parametrize(
    "record",
    [
        FINE,
        {**FINE, "surviving": 0.5, "dropout": 10.0},
        {**FINE, "surviving": math.nan, "dropout": math.nan},
        {**FINE, "dropout": 0.0, "adversarial": 0.0},
    ],
)
def test_what_is_well_is_not_spoken_of(record: dict[str, float]) -> None:
    assert notices({"sst": record}, WANG) == []


def test_nothing_is_said_twice_of_the_same_task() -> None:
    watch = Notices("together", built(WANG, RDropOptions()), dtype_of("bfloat16"))
    bad, fine = {"wang": RECORD, "r_drop": {"dropout": 0.4}}, {"wang": FINE, "r_drop": {"dropout": 0.4}}
    said = [
        [notice.tasks for notice in watch.new(records)]
        for records in ({"sst": bad, "sts": bad, "quora": fine}, {"sst": bad, "sts": fine}, {"sst": bad, "quora": bad})
    ]
    assert said == [[("sst", "sts")] * 2, [], [("quora",)] * 2]


# in a stage and in a run


def test_a_stage_says_what_is_wrong_before_its_first_step_and_once(make: Make) -> None:
    prepared = make()
    events = list(prepared.run(regularisers=built(WANG, EXACT)).events())
    said = [event for event in events if isinstance(event, Notice)]
    assert [(notice.regulariser, notice.tasks) for notice in said] == [("wang", TASKS)]
    assert events.index(said[0]) < events.index(steps(events)[0])
    assert [set(event.probe) for event in epochs(events)] == [set(TASKS)] * 2


def test_the_state_to_beat_is_probed_too(make: Make) -> None:
    run = make().run(regularisers=built(EXACT))
    run.entry_counts = True
    entry, *others = epochs(list(run.events()))
    assert entry.report.epoch == -1
    assert set(entry.probe["mood"]["smoothness"]) == set(others[0].probe["mood"]["smoothness"])
    assert entry.probe != others[0].probe


def test_a_run_writes_its_probes_and_notices_and_shows_them(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    regularisers = [{"kind": "smoothness", "preset": "wang", "weight": 3.0}, {"kind": "r_drop", "tasks": "mood"}]
    options = table(tiny_encoder, regularisers=regularisers)
    options["encoder"] |= {"dropout": RATE, "attention_dropout": RATE}
    watcher = Watcher()
    run = train(options, data_dir=small_data, run_dir=tmp_path / "run", listen=watcher)
    watcher.close()
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert {task: list(found) for task, found in line["probe"].items()} == {
            "mood": ["smoothness", "r_drop"],
            "same": ["smoothness"],
            "near": ["smoothness"],
        }
        assert line["probe"]["mood"]["smoothness"]["norm"] == pytest.approx(1e-5, rel=1e-6)
    (notice,) = json.loads((run.folder / "run.json").read_text())["notices"]
    assert (notice["stage"], notice["regulariser"], notice["tasks"]) == ("together", "smoothness", list(TASKS))
    assert "R-Drop" in notice["text"]
    shown = capsys.readouterr().err
    assert shown.count("warning: stage together, smoothness (mood, same, near): two passes") == 1
    assert shown.count("  smoothness: mood dropout ") == shown.count("  r_drop: mood dropout ") == 2
    epoch = next(line for line in shown.splitlines() if line.startswith("epoch 1,"))
    added = lines[0]["losses"]["mood"]
    assert f"(smoothness {added['smoothness']:.2g}, r_drop {added['r_drop']:.2g})" in epoch


def test_a_run_without_regularisers_writes_no_probe(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, own_cache: Path
) -> None:
    run = train(table(tiny_encoder, stop={"max_epochs": 1}), data_dir=small_data, run_dir=tmp_path / "run")
    (line,) = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert "probe" not in line
    assert json.loads((run.folder / "run.json").read_text())["notices"] == []


def test_lines_for_people() -> None:
    plain = {"dropout": 0.42, "as_used": 0.4, "seconds_plain": 0.12, "seconds_with": 0.2}
    probe = {"sst": {"smoothness": {**RECORD, "surviving": 1.0}, "r_drop": plain}, "sts": {"smoothness": RECORD}}
    assert list(probe_lines(probe)) == [
        "smoothness: sst dropout 0.4, random 1e-09, adversarial 1e-06, as used 0.4, norm 1e-05, 100 % survive, step 0.31 s "
        "(plain 0.12 s); sts dropout 0.4, random 1e-09, adversarial 1e-06, as used 0.4, norm 1e-05, 3 % survive, step 0.31 s "
        "(plain 0.12 s)",
        "r_drop: sst dropout 0.42, as used 0.4, step 0.2 s (plain 0.12 s)",
    ]
    rare = {"sts": {"cheap": {**plain, "every": 5.0}}}
    assert list(probe_lines(rare)) == [
        "cheap: sts dropout 0.42, as used 0.4, step 0.2 s every 5 batches (plain 0.12 s)"
    ]
    assert loss_text("sst", {"unweighted": 1.2, "task": 2.4, "weight": 0.0}) == "sst 1.200"
    parts = {"task": 2.4, "weight": 0.0, "smoothness": 0.0123, "unweighted": 1.2}
    assert loss_text("sst", parts) == "sst 1.200 (smoothness 0.012)"
