"""Packed grids: every kernel against torch in float64, and the fast path of `pwim_resnet` against the plain one."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from smoothtune.config import trunks as config
from smoothtune.nn.dropout import name_places
from smoothtune.nn.grid import cell_mask, halve_grid
from smoothtune.nn.trunks import packed_grid, pwim_resnet
from smoothtune.registry import resolve
from smoothtune.runtime.kernels import grid as kernels
from smoothtune.runtime.kernels import grid_products as products
from smoothtune.runtime.kernels.grid import Drop, Layout, Norm
from smoothtune.runtime.random import Pass, drawing, keep_mask

Lengths = list[tuple[int, int]]
ragged = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5)
slowly = settings(max_examples=25, deadline=None)
DTYPES = [
    pytest.param(dtype, id=name, marks=pytest.mark.skipif(
        not kernels.available(dtype), reason=f"no {name} kernels for packed grids: no compiler, or a processor without {unit}"
    ))
    for dtype, name, unit in ((torch.bfloat16, "bfloat16", "AMX"), (torch.float32, "float32", "AVX-512"))
]  # fmt: skip
in_both = pytest.mark.parametrize("dtype", DTYPES)
WIDTH = 24


def masks(lengths: Lengths) -> tuple[Tensor, Tensor]:
    sides = [torch.tensor(side) for side in zip(*lengths, strict=True)]
    first, second = (torch.arange(int(side.max())) < side.unsqueeze(1) for side in sides)
    return first, second


def packed(grid: Tensor, layout: Layout) -> Tensor:
    """A padded grid (B, C, H, W) as a packed one."""
    out = torch.zeros(layout.cells, grid.shape[1], dtype=layout.dtype)
    for one, (height, width, first, _) in zip(grid, layout.table.tolist(), strict=True):
        for row in range(height):
            start = first + row * (width + 1)
            out[start : start + width] = one[:, row, :width].mT.to(layout.dtype)
    return out


def padded(grid: Tensor, layout: Layout) -> Tensor:
    """A packed grid as a padded one in float64, 0 outside real cells."""
    out = torch.zeros(len(layout.table), grid.shape[1], layout.height, layout.width, dtype=torch.float64)
    for one, (height, width, first, _) in zip(out, layout.table.tolist(), strict=True):
        for row in range(height):
            start = first + row * (width + 1)
            one[:, row, :width] = grid[start : start + width].mT.double()
    return out


def zeros_between(grid: Tensor, layout: Layout) -> bool:
    """Whether a packed grid holds zeros wherever cells are not real."""
    return bool(torch.equal(packed(padded(grid, layout), layout), grid))


class Grids:
    """Random padded grids of given sizes whose numbers bfloat16 can hold, and their layout."""

    def __init__(self, lengths: Lengths, dtype: torch.dtype, seed: int = 0) -> None:
        self.masks = masks(lengths)
        self.cells = cell_mask(*self.masks)
        self.layout = kernels.lay_out(*self.masks, dtype)
        self.draw = torch.Generator().manual_seed(seed)

    def grid(self, channels: int) -> Tensor:
        drawn = torch.randn(len(self.cells), channels, *self.cells.shape[2:], generator=self.draw)
        return (drawn.bfloat16().double() * self.cells).requires_grad_()

    def weight(self, *shape: int) -> Tensor:
        return (torch.randn(shape, generator=self.draw) / 8).bfloat16().double().requires_grad_()


def near(found: Tensor, expected: Tensor, tolerance: float = 1e-2, dtype: torch.dtype = torch.bfloat16) -> None:
    """The distance of two tensors is a small share of the second's length; of what was computed in float32 a tiny one."""
    tolerance = tolerance if dtype == torch.bfloat16 else min(tolerance, 2e-5)
    distance, length = (found.double() - expected).norm(), expected.norm()
    assert distance <= tolerance * length + 1e-6, f"{distance / length:.2e} of {length:.3g}"


@in_both
@slowly
@given(ragged, st.sampled_from([(128, 128, 3), (32, 96, 3), (64, 32, 1)]), st.booleans())
def test_convolutions_and_their_gradients_are_those_of_torch(
    dtype: torch.dtype, lengths: Lengths, shape: tuple[int, int, int], more: bool
) -> None:
    entering, out, side = shape
    given_ = Grids(lengths, dtype)
    x, weight, bias = given_.grid(entering), given_.weight(out, entering, side, side), given_.weight(out)
    y = F.conv2d(x, weight, bias, padding=side // 2) * given_.cells
    grad, extra, layout = given_.grid(out).detach(), given_.grid(entering).detach(), given_.layout
    y.backward(grad)
    assert x.grad is not None
    assert weight.grad is not None
    flat = weight.detach().float()
    found = products.convolve(packed(x, layout), flat, bias.detach().float(), layout)
    near(padded(found, layout), y.detach(), dtype=dtype)
    added = packed(extra, layout) if more else None
    back = products.convolution_gradient(packed(grad, layout), flat, layout, more=added)
    near(padded(back, layout), (x.grad + (extra if more else 0)) * given_.cells, dtype=dtype)
    near(products.weight_gradient(packed(grad, layout), packed(x, layout), flat, layout), weight.grad, 1e-5)


@in_both
@slowly
@given(ragged)
def test_columns_hold_the_neighbours_and_give_their_gradient_back(dtype: torch.dtype, lengths: Lengths) -> None:
    given_ = Grids(lengths, dtype)
    cube, weight = given_.grid(3), given_.weight(64, 3, 3, 3)
    expected = F.conv2d(cube, weight, padding=1) * given_.cells
    cubes = cube.detach().float().requires_grad_()
    columns = packed_grid.columns(cubes, given_.layout)
    assert zeros_between(columns.detach(), given_.layout)
    found = padded((columns @ packed_grid.over_columns(weight).flatten(1).to(dtype).mT).detach(), given_.layout)
    near(found, expected.detach(), dtype=dtype)
    upwards = torch.randn(columns.shape, generator=given_.draw).to(dtype)
    columns.backward(upwards)
    neighbours = F.unfold(cube, 3, padding=1).view(len(cube), 3, 9, *cube.shape[2:]).transpose(1, 2).flatten(1, 2)
    (neighbours * padded(upwards, given_.layout)[:, :27]).sum().backward()
    assert cubes.grad is not None
    assert cube.grad is not None
    near(cubes.grad, cube.grad * given_.cells, 1e-5)


@in_both
@slowly
@given(ragged, st.sampled_from([0.0, 0.5, 0.1]), st.booleans())
def test_norm_relu_and_dropout_are_those_of_torch(
    dtype: torch.dtype, lengths: Lengths, rate: float, outer: bool
) -> None:
    given_ = Grids(lengths, dtype)
    layout, cells, channels = given_.layout, given_.cells, 64
    y, around, upwards = given_.grid(channels), given_.grid(channels), given_.grid(channels).detach()
    numbers = [given_.weight(channels) for _ in range(3)]
    mean, scale, bias = (part.view(1, -1, 1, 1) for part in numbers)
    with drawing(Pass(seed=1, stage="s", step=1)):
        shape = torch.Size([len(y), layout.height, layout.width, channels])
        kept = keep_mask("here", shape, rate, torch.device("cpu")).permute(0, 3, 1, 2)
    drop = Drop(rate, Pass(seed=1, stage="s", step=1).number("here#0"))
    dropped = ((y - mean) * scale + bias) * (kept / (1 - rate))
    expected = F.relu(dropped + around if outer else dropped) * cells
    flat = packed(y.detach(), layout)
    norm = Norm(*(part.detach().float() for part in numbers))
    z = kernels.normed(flat, norm, drop, layout, around=packed(around.detach(), layout) if outer else None)
    assert zeros_between(z, layout)
    near(padded(z, layout), expected.detach(), dtype=dtype)
    expected.backward(upwards)
    assert y.grad is not None
    assert numbers[2].grad is not None
    sums = kernels.normed_sums(flat, z, packed(upwards, layout), norm.mean, drop, layout, outer=outer)
    near(sums.plain, numbers[2].grad, 2e-2, dtype)
    if outer:
        assert around.grad is not None
        near(padded(sums.through, layout), around.grad * cells, 2e-2, dtype)
    still = torch.zeros(channels), torch.zeros(channels)
    back = kernels.normed_gradient(flat, None if outer else z, sums.through, norm, still, drop, layout)
    assert zeros_between(back, layout)
    near(padded(back, layout), y.grad * cells, 2e-2, dtype)


@in_both
@slowly
@given(ragged)
def test_statistics_and_the_largest_are_those_of_real_cells(dtype: torch.dtype, lengths: Lengths) -> None:
    given_ = Grids(lengths, dtype)
    grid = given_.grid(32)
    flat = packed(grid.detach(), given_.layout)
    real = grid.detach().permute(0, 2, 3, 1)[given_.cells[:, 0]]
    mean, squares = kernels.statistics(flat, given_.layout)
    torch.testing.assert_close(mean.double(), real.mean(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(squares.double(), (real - real.mean(dim=0)).square().sum(dim=0), rtol=1e-4, atol=1e-4)
    flat.requires_grad_()
    highest = packed_grid.largest(flat, given_.layout)
    expected = grid.masked_fill(~given_.cells, -torch.inf).flatten(2).amax(dim=2)
    assert torch.equal(highest.double(), expected)
    highest.sum().backward()
    assert flat.grad is not None
    assert zeros_between(flat.grad, given_.layout)
    assert torch.equal(padded(flat.grad, given_.layout).flatten(2).sum(dim=2), torch.ones_like(expected))
    assert torch.equal((padded(flat.grad, given_.layout) * grid.detach()).flatten(2).sum(dim=2), expected)


@in_both
@slowly
@given(ragged)
def test_halving_is_that_of_the_plain_path(dtype: torch.dtype, lengths: Lengths) -> None:
    given_ = Grids(lengths, dtype)
    grid = given_.grid(32)
    expected, _ = halve_grid(grid, given_.cells)
    flat = packed(grid.detach(), given_.layout).requires_grad_()
    found = packed_grid.halved(flat, given_.layout)
    assert torch.equal(found.double(), expected)
    upwards = torch.randn(expected.shape, generator=given_.draw).to(dtype)
    expected.backward(upwards.double())
    found.backward(upwards)
    assert flat.grad is not None
    assert grid.grad is not None
    assert zeros_between(flat.grad, given_.layout)
    assert torch.equal(padded(flat.grad, given_.layout), grid.grad * given_.cells)


@in_both
def test_what_is_not_a_number_stays_so(dtype: torch.dtype) -> None:
    given_ = Grids([(3, 4), (5, 2)], dtype)
    grid = packed(given_.grid(32).detach(), given_.layout)
    grid[int(given_.layout.table[1, 2])] = torch.nan
    norm = Norm(torch.zeros(32), torch.ones(32), torch.zeros(32))
    z = kernels.normed(grid, norm, Drop(0.0, 0), given_.layout)
    assert kernels.largest(z, given_.layout)[0].isnan().all(dim=1).tolist() == [False, True]
    assert kernels.statistics(grid, given_.layout)[0].isnan().all()
    assert kernels.halved(z, given_.layout).isnan().flatten(1).any(dim=1).tolist() == [False, True]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


KINDS = {"pwim_resnet": config.PwimResnetTrunk, "pwim_dcnn": config.PwimDcnnTrunk}


def trunk(kind: str = "pwim_resnet", *, rate: float = 0.5) -> nn.Module:
    torch.manual_seed(3)
    made: nn.Module = resolve("trunks", kind)(KINDS[kind](depth=2, dropout=rate), WIDTH)
    for parameter in made.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=0.5)
    name_places(made)
    return made


def texts(lengths: Lengths) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(*mask.shape, WIDTH, generator=draw) for mask in masks(lengths)]


def in_dtype(dtype: torch.dtype) -> torch.autocast:
    """Products of float32 modules are made in `dtype` inside."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)


def answers(made: nn.Module, lengths: Lengths, dtype: torch.dtype) -> list[Tensor]:
    """Features (B, 128) and the gradients of both texts."""
    wide = torch.promote_types(dtype, torch.float32)
    states = [part.to(wide).requires_grad_() for part in texts(lengths)]
    mask_a, mask_b = masks(lengths)
    made.zero_grad()
    with drawing(Pass(seed=1, stage="s", step=1)), in_dtype(dtype):
        features = made(states[0], mask_a, states[1], mask_b)
    features.mul(torch.linspace(-1, 1, 128)).sum().backward()
    return [features.detach(), *(part.grad for part in states if part.grad is not None)]


@in_both
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype, threads: None) -> None:
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        made = trunk()
        tensors = answers(made, [(9, 14), (30, 5), (1, 1), (12, 12)], dtype)
        found.append([*tensors, *(part.grad for part in made.parameters())])
    assert len(found[0]) == 3 + len(list(trunk().parameters()))
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


@in_both
@slowly
@given(ragged, st.sampled_from([0.0, 0.5]), st.booleans())
def test_the_fast_trunk_gives_what_the_plain_one_gives_in_float64(
    dtype: torch.dtype, lengths: Lengths, rate: float, training: bool
) -> None:
    fast, plain = trunk(rate=rate).train(training), trunk(rate=rate).double().train(training)
    found, expected = answers(fast, lengths, dtype), answers(plain, lengths, torch.float64)
    cells = sum(a * b for a, b in lengths)
    assert found[0].shape == expected[0].shape
    few = cells <= 8 and training  # a batch norm over few cells magnifies the rounding of their differences
    if cells > 1 or not training:
        tolerances = {torch.bfloat16: (2e-2, 6e-2), torch.float32: (2e-5, 2e-3)}
        near(found[0], expected[0].double(), tolerances[dtype][few], torch.bfloat16)
    for name, value in plain.state_dict().items():
        if "running" in name and cells > 8:
            near(fast.state_dict()[name], value, 2e-2, dtype)


@in_both
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_gradients_of_a_block_are_those_of_the_plain_one_in_float64(
    dtype: torch.dtype, training: bool, first: bool
) -> None:
    given_ = Grids([(9, 14), (20, 5), (1, 1), (12, 12)], dtype)
    fast, plain = (trunk().train(training).blocks[0 if first else 1] for _ in range(2))
    plain = plain.double()
    x = given_.grid(3 if first else 128)
    inside = x.detach().float().requires_grad_() if first else packed(x.detach(), given_.layout).requires_grad_()
    with drawing(Pass(seed=1, stage="s", step=1)):
        expected = plain(x, given_.cells)
    with drawing(Pass(seed=1, stage="s", step=1)):
        columns = packed_grid.columns(inside, given_.layout) if first else inside
        found = packed_grid.block(columns, *fast.packed(), given_.layout)
    near(padded(found.detach(), given_.layout), expected.detach(), dtype=dtype)
    upwards = given_.grid(128).detach()
    expected.backward(upwards)
    found.backward(packed(upwards, given_.layout))
    assert inside.grad is not None
    assert x.grad is not None
    entered = inside.grad if first else padded(inside.grad, given_.layout)
    near(entered, x.grad * given_.cells, 0.1, dtype)  # signs at the ReLU flip in bfloat16
    without = {"convolution_1.bias", "convolution_2.bias"} if training else set()  # theirs is 0, but for rounding
    compared = [
        pair for pair in zip(fast.named_parameters(), plain.parameters(), strict=True) if pair[0][0] not in without
    ]
    assert len(compared) == (10 if first else 8) - len(without)
    for (name, one), other in compared:
        assert one.grad is not None, name
        assert other.grad is not None, name
        near(one.grad, other.grad, 0.1, dtype)


@in_both
def test_the_fast_path_is_taken_where_there_are_kernels_for_it(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[torch.dtype] = []
    monkeypatch.setattr(
        pwim_resnet.PwimResnetTrunk, "_packed", lambda self, cube, layout: taken.append(layout.dtype) or cube
    )
    mask_a, mask_b = masks([(3, 4)])

    def call(made: nn.Module, autocast: torch.dtype | None) -> None:
        wide = next(made.parameters()).dtype
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            made(texts([(3, 4)])[0].to(wide), mask_a, texts([(3, 4)])[1].to(wide), mask_b)

    call(trunk().eval(), None if dtype == torch.float32 else dtype)
    assert taken == [dtype]
    call(trunk().eval(), torch.float16)
    call(trunk().eval().double(), None)
    monkeypatch.setattr(packed_grid, "available", lambda dtype: False)
    call(trunk().eval(), None if dtype == torch.float32 else dtype)
    assert taken == [dtype]


@in_both
@pytest.mark.parametrize("garbage", [1e4, float("nan")])
def test_padding_changes_nothing_on_the_fast_path(dtype: torch.dtype, garbage: float) -> None:
    lengths = [(9, 14), (20, 5), (1, 1)]
    made, (mask_a, mask_b) = trunk(rate=0.0), masks(lengths)
    a, b = (
        part.masked_fill(~mask.unsqueeze(2), garbage) for part, mask in zip(texts(lengths), masks(lengths), strict=True)
    )
    longer = F.pad(a, [0, 0, 0, 3], value=garbage), F.pad(mask_a, [0, 3])
    with in_dtype(dtype):
        plain, padded_ = made(a, mask_a, b, mask_b), made(*longer, b, mask_b)
        alone = made.eval()(a[:1, :9], mask_a[:1, :9], b[:1, :14], mask_b[:1, :14])
        together = made(a, mask_a, b, mask_b)
    torch.testing.assert_close(padded_, plain, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(together[:1], alone, rtol=1e-2, atol=1e-2)
