"""A checkpoint of a small run in which one value is another one, and a stage that goes on from it for one step.

The stage is prepared once; each input gets its weights anew. Knows nothing of how inputs are counted or watched.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fuzz.files import Files, read_files
from tests.fuzz.mutations import VALUES, mutated
from tests.small_data import write_data
from tests.tiny import write_bert

if TYPE_CHECKING:
    import torch

    from smoothtune.training.stage import StageRun
    from tests.small_data import Prepared

STEPS = (3, 11)  # in the first epoch, and in the second: then there is a best state that is not the present one
EXTREME: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2, 10**12, 2**62, -(2**62), 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x"),
    *("mood", [], {}, [1, 2], {"a": 1}, "tensor:/stage/weights/outputs.mood.linear.bias"),
)


class GoingOn:
    """A stage with smoothness, proximal, LoRA and accumulated batches."""

    def __init__(self) -> None:
        self._prepared: Prepared | None = None
        self._weights: dict[str, torch.Tensor] = {}

    def seeds(self, work: Path) -> list[Files]:
        """Checkpoints in the midst of two epochs, and after the first."""
        from smoothtune.training.loop import StepReport
        from smoothtune.training.stage_events import StageEpoch

        self._prepare(work)
        run, found = self.stage(), list[Files]()
        for event in run.events():
            after_step = isinstance(event, StepReport) and event.step in STEPS
            if after_step or (isinstance(event, StageEpoch) and not found[1:]):
                found.append(_written(run, work / str(len(found))))
            if len(found) > len(STEPS):
                break
        return found

    def read(self, folder: Path) -> None:
        """The state of the run and of its stage, and one step from there."""
        from smoothtune.training.checkpoint import read_checkpoint
        from smoothtune.training.loop import StepReport
        from smoothtune.workflow.saving import run_state

        _, state = run_state(read_checkpoint(folder), 1)
        run = self.stage()
        run.goes_on_from = state
        for event in run.events():
            if isinstance(event, StepReport):
                break

    def _prepare(self, work: Path) -> None:
        from tests.adapted import LORA, adapted
        from tests.small_data import snapshot

        smooth = {"kind": "smoothness", "preset": "exact", "every": 2, "tasks": ["mood"]}
        self._prepared = adapted(
            write_bert(work / "encoder"),
            write_data(work / "data"),
            work / "rows",
            lora={"mood": LORA, "near": LORA},
            dropout=0.1,
            train=["lora", "trunks", "outputs"],
            frozen_dropout=True,
            tasks=["mood", "near"],
            regularisers=[smooth, {"kind": "proximal"}],
            weighting=["inverse_size", "learned"],
            accumulate=2,
            stop={"patience": 2, "max_epochs": 3, "per_task": True},
        )
        self._weights = snapshot(self._prepared.model)

    def stage(self) -> StageRun:
        """The stage, from its first step."""
        from smoothtune.objective.regularisers import build_regularisers

        assert self._prepared is not None
        self._prepared.model.load_state_dict(self._weights)
        stage = self._prepared.experiment.stages[0]
        return self._prepared.run(regularisers=build_regularisers(stage.regularisers, depth=2))


def _written(run: StageRun, folder: Path) -> Files:
    """The checkpoint of a run in this stage."""
    from smoothtune.training.checkpoint import Checkpoints
    from smoothtune.workflow.saving import RunState

    none: list[dict[str, Any]] = []
    state = RunState(
        identity={}, machine={}, threads=1, stage=0, told=none, frozen=none, notices=none, metrics=0, resumed=none
    )
    return read_files(Checkpoints(folder).write(state.with_stage(run.state_dict())))


def one_value_changed(files: Files, others: Sequence[Files], draw: random.Random) -> Files:
    """One value of the state is gone, another one of the state, or extreme; now and then any damage. The sums are right.

    In half of the inputs the files are then written as a checkpoint is, so that they hold the tensors that the state names.
    """
    if draw.random() < 0.1:
        return with_sums(mutated(files, others, draw))
    content, tensors = files["state.json"], files["tensors.safetensors"]
    assert isinstance(content, bytes)
    assert isinstance(tensors, bytes)
    whole = json.loads(content)
    if draw.random() < 0.5:
        _change(whole["state"], draw)
        return with_sums({**files, "state.json": json.dumps(whole).encode()})
    return with_sums({**files, **_written_again(whole, tensors, draw)})


def _change(state: Any, draw: random.Random) -> None:
    places = list(_places(state))
    plain = [(holder, key) for holder, key in places if not str(holder[key]).startswith("tensor:")]
    holder, key = draw.choice(places if draw.random() < 0.3 else plain)
    turn = draw.random()
    if turn < 0.15:
        del holder[key]
    elif turn < 0.3:
        other, place = draw.choice(places)
        holder[key] = deepcopy(other[place])
    else:
        holder[key] = deepcopy(draw.choice(EXTREME if turn < 0.8 else VALUES))


def _written_again(whole: Any, content: bytes, draw: random.Random) -> Files:
    """With a value or a tensor changed, and every tensor under the path at which the state has it then."""
    from safetensors.torch import load, save

    from smoothtune.training.state import put_together, taken_apart

    tensors = load(content)
    name = draw.choice(sorted(tensors))
    if draw.random() < 0.5:
        tensors[name] = _another(tensors, name, draw)
    state = put_together(whole["state"], tensors)
    if draw.random() < 0.6:
        _change(state, draw)
    plain, found = taken_apart(state)
    text = json.dumps({**whole, "state": plain}).encode(errors="surrogatepass")
    return {"state.json": text, "tensors.safetensors": save({key: part.clone() for key, part in found.items()})}


def _another(tensors: dict[str, torch.Tensor], name: str, draw: random.Random) -> torch.Tensor:
    """A tensor in the place of `name`."""
    import torch

    held = tensors[name]
    made = (
        *(held.double(), held.long(), held.bool(), held.flatten(), held[:1], held[:0], held[..., None], held + 1),
        *(-held, held * 1e30, torch.zeros(()), torch.full(held.shape, torch.nan), torch.full(held.shape, torch.inf)),
        tensors[draw.choice(sorted(tensors))],
    )
    return draw.choice(made).clone()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each table or list inside, with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def with_sums(files: Files) -> Files:
    """The files with the sums that they have now."""
    named = ("state.json", "tensors.safetensors")
    lines = [f"{sha256(found).hexdigest()}  {name}\n" for name in named if isinstance(found := files.get(name), bytes)]
    return {**files, "SHA256SUMS": "".join(lines).encode()}
