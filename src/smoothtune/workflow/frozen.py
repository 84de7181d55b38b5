"""The states of an encoder that a stage does not train: computed once, kept in the cache, given to the stage's examples.

Knows nothing of trunks beyond what they need, and of nothing that trains. Prints nothing: whoever listens is told.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smoothtune.data.batching import Examples, pad
from smoothtune.data.states import StateColumn, StateStore, make_room
from smoothtune.files import WriteError
from smoothtune.inference.batches import token_batches
from smoothtune.nn.at_rest import at_rest
from smoothtune.nn.encoder import Encoder
from smoothtune.nn.masked_pool import pool_tokens
from smoothtune.runtime.device import computing_in
from smoothtune.runtime.kernels.building import told
from smoothtune.types import Needs

StateNeeds = tuple[Needs, tuple[int, ...] | None]
"""Which states of a text are needed, and of which layers, side by side; None for the last layer."""
WINDOW_ROWS = 1 << 15  # sorted by length together, so that what is written lies close together


@dataclass(frozen=True, slots=True)
class Encoding:
    """While a frozen encoder reads what the cache does not have: `done` of `texts` so far."""

    stage: str
    done: int
    texts: int


@dataclass(frozen=True, slots=True)
class FrozenStates:
    """A stage trains nothing in the encoder: there is no dropout in it, and its states never change.

    Of `texts` (a pair that is read apart counts twice) `encoded` were not in the cache; `seconds` is what all took. The
    states take `bytes` of disk. `obstacle` says why they are computed at every step instead, None where they are kept;
    where the stage is `short`, nothing went wrong: it reads too little for keeping them to pay.
    """

    stage: str
    texts: int
    encoded: int
    bytes: int
    seconds: float
    obstacle: str | None
    short: bool = False


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What one token column of some examples needs, and the folder where it is or will be."""

    examples: Examples
    store: StateStore
    folder: Path


@dataclass(frozen=True, slots=True)
class StateKeeper:
    """Gives examples the states of `encoder`, which must not change while they are in use.

    They are computed in `dtype`, without dropout, many rows of like length at a time, as in prediction.
    """

    encoder: Encoder
    dtype: torch.dtype
    cache: Path
    stage: str
    listen: Callable[[Encoding | FrozenStates], None]

    def give(
        self,
        splits: Sequence[Mapping[str, Examples]],
        needs: Mapping[str, StateNeeds],
        *,
        at_most: int | None = None,
    ) -> list[dict[str, Examples]]:
        """The same examples with the states that each task `needs`, or as they are where these cannot be kept.

        `at_most` is the number of training rows (those of `splits[0]`) that the stage can read, if that is bounded: where
        it is fewer than there are, nothing new is encoded.
        """
        began = time.perf_counter()
        encoder = fingerprint(self.encoder)
        wanted = [{task: self._wanted(part, needs[task], encoder) for task, part in split.items()} for split in splits]
        every = {item.folder: item for split in wanted for items in split.values() for item in items}
        missing = [item for item in every.values() if item.store.open(item.folder) is None]
        rows = sum(len(part) for part in splits[0].values())
        given = [dict(split) for split in splits]
        obstacle: str | None = None
        short = bool(missing) and at_most is not None and at_most < rows
        if short:
            obstacle = f"the stage reads at most {at_most:,} of its {rows:,} training rows"
        else:
            try:
                self._write(missing, every)
                given = [_with_states(split, items) for split, items in zip(splits, wanted, strict=True)]
            except (WriteError, OSError) as error:
                obstacle = str(error)
        size, seconds = sum(item.store.bytes() for item in every.values()), time.perf_counter() - began
        encoded = 0 if obstacle else _texts(missing)
        self.listen(FrozenStates(self.stage, _texts(every.values()), encoded, size, seconds, obstacle, short))
        return given

    def in_memory(self, examples: Examples, needs: StateNeeds) -> Examples:
        """The same examples with pooled states that no disk has room for."""
        columns = []
        for item in self._wanted(examples, needs, ""):
            rows = len(item.store.rows)
            values = torch.empty(rows, item.store.width)
            with at_rest(self.encoder), torch.inference_mode(), computing_in(self.dtype, self._device):
                self._fill(item, lambda done: None, values, np.arange(rows + 1))
            columns.append(StateColumn(item.store.rows, values, None))
        return replace(examples, states=tuple(columns))

    def _wanted(self, examples: Examples, needs: StateNeeds, encoder: str) -> list[_Wanted]:
        """One store per token column."""
        rows = examples.chosen if bool(np.all(np.diff(examples.chosen) > 0)) else np.unique(examples.chosen)
        kind, layers = needs
        width = self.encoder.width * (1 if layers is None else len(layers))
        stores = [
            StateStore(
                self.cache,
                encoder,
                column,
                rows,
                joint=examples.reads == "joint",
                needs=kind,
                dtype=self.dtype,
                width=width,
                layers=layers,
            )
            for column in examples.columns
        ]
        return [_Wanted(examples, store, store.folder()) for store in stores]

    def _write(self, missing: Collection[_Wanted], every: Collection[Path]) -> None:
        """Encode what is missing. Raises `WriteError` or `OSError` where that cannot be kept."""
        texts, done = _texts(missing), 0

        def read(rows: int) -> None:
            nonlocal done
            done += rows
            self.listen(Encoding(self.stage, done, texts))

        if missing:
            make_room(self.cache, sum(item.store.bytes() for item in missing), every)
        for item in missing:
            with at_rest(self.encoder), torch.inference_mode(), computing_in(self.dtype, self._device):
                item.store.write(item.folder, partial(self._fill, item, read))

    def _fill(self, item: _Wanted, read: Callable[[int], None], values: Tensor, starts: np.ndarray) -> None:
        """Put the states of all rows into `values` (P, D), those of row i from `starts[i]` (M + 1,) on."""
        store, examples = item.store, item.examples
        column, lengths = store.column, store.column.lengths(store.rows)
        for places in _batches(lengths, examples.limit):
            tokens = pad([(column, store.rows[places])], store.joint, examples.pad_id, examples.limit)
            tokens = tokens.to(self._device)
            states = self.encoder(tokens, keep_inputs=store.layers is not None).of_layers(store.layers)
            if store.needs == "states":
                kept, into = states[tokens.mask], _spans(starts[places], lengths[places])
            else:
                kept, into = pool_tokens(states, tokens.mask, store.needs), places
            values.index_copy_(0, torch.from_numpy(into), kept.to(values))
            read(len(places))

    @property
    def _device(self) -> torch.device:
        return next(self.encoder.parameters()).device


def fingerprint(encoder: Encoder) -> str:
    """Names what an encoder gives in eval mode: what it is, and the kind of device and kernels that compute it."""
    device = next(encoder.parameters()).device.type
    return hashlib.sha256(json.dumps([content_of(encoder), device, told(device)]).encode()).hexdigest()


def content_of(encoder: Encoder) -> str:
    """Names what an encoder is, wherever it computes: its class, architecture and weights."""
    settings = [type(encoder).__name__, encoder.architecture]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _with_states(split: Mapping[str, Examples], wanted: Mapping[str, Sequence[_Wanted]]) -> dict[str, Examples]:
    return {task: replace(part, states=tuple(map(_opened, wanted[task]))) for task, part in split.items()}


def _opened(item: _Wanted) -> StateColumn:
    """The states that were found or written a moment ago. They stay readable, whoever removes their folder later."""
    column = item.store.open(item.folder)
    if column is None:
        what = "has gone: another process made room for its own; free space or choose another cache with XDG_CACHE_HOME"
        raise WriteError(f"{item.folder}: {what}")
    return column


def _texts(items: Iterable[_Wanted]) -> int:
    return sum(len(item.store.rows) for item in items)


def _batches(lengths: np.ndarray, limit: int) -> Iterator[np.ndarray]:
    """Places of rows to encode together, one window after another."""
    for begin in range(0, len(lengths), WINDOW_ROWS):
        for places in token_batches(lengths[begin : begin + WINDOW_ROWS], limit=limit):
            yield begin + places


def _spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """All places of spans that begin at `starts` (B,) and are `lengths` (B,) long, one after another."""
    ends = np.cumsum(lengths)
    places: np.ndarray = np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1])
    return places
