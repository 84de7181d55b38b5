"""The pairwise word interaction trunks and their parts, against slow references."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn
from torch.func import functional_call

from smoothtune.config import trunks as config
from smoothtune.nn import recomputing
from smoothtune.nn.dropout import name_places
from smoothtune.nn.grid import cell_mask, grid_max, halve_grid
from smoothtune.nn.masked_norm import MaskedBatchNorm2d
from smoothtune.nn.trunks import packed_grid
from smoothtune.nn.trunks.pwim_dcnn import PwimDcnnTrunk
from smoothtune.nn.trunks.pwim_resnet import PwimResnetTrunk
from smoothtune.nn.trunks.similarity_cube import EPS, similarity_cube
from smoothtune.runtime.random import Pass, drawing

WIDTH = 8
ragged = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=4)
slowly = settings(max_examples=25, deadline=None)


def texts(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random states, also at padded places, and their mask."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*mask.shape, WIDTH, generator=generator), mask


def pairs(lengths: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *texts([a for a, _ in lengths], 1), *texts([b for _, b in lengths], 2)


def grids(lengths: list[tuple[int, int]], channels: int = 5) -> tuple[Tensor, Tensor]:
    _, mask_a, _, mask_b = pairs(lengths)
    cells = cell_mask(mask_a, mask_b)
    generator = torch.Generator().manual_seed(3)
    return torch.randn(len(lengths), channels, *cells.shape[2:], generator=generator) - 2, cells


def slow_cube(a: Tensor, b: Tensor) -> Tensor:
    """The cube (1, 3, Ta, Tb) of one pair of states (T, D), cell by cell in float64."""
    cube = torch.zeros(1, 3, len(a), len(b), dtype=torch.float64)
    for i, u in enumerate(a.double()):
        for j, v in enumerate(b.double()):
            cube[0, 0, i, j] = u.dot(v) / (u.norm() * v.norm())
            cube[0, 1, i, j] = (u - v).norm()
            cube[0, 2, i, j] = u.dot(v)
    return cube


def norm_of(norm: MaskedBatchNorm2d) -> nn.BatchNorm2d:
    plain = nn.BatchNorm2d(len(norm.weight)).double()
    plain.load_state_dict(norm.state_dict())
    return plain.eval()


def conv(layer: nn.Module, grid: Tensor) -> Tensor:
    assert isinstance(layer, nn.Conv2d)
    return F.conv2d(grid, layer.weight.double(), layer.bias.double(), padding=layer.padding)


def slow_dcnn(trunk: PwimDcnnTrunk, grid: Tensor) -> Tensor:
    """Table 2 on one unpadded pair, in eval mode, float64."""
    for number, (layer, norm) in enumerate(zip(trunk.convolutions, trunk.norms, strict=True), 1):
        grid = F.relu(norm_of(norm)(conv(layer, grid)))
        if number < len(trunk.norms):
            grid = F.max_pool2d(grid, 2, 2, ceil_mode=True)
    return F.adaptive_max_pool2d(grid, (1, 1)).flatten(1)


def slow_resnet(trunk: PwimResnetTrunk, grid: Tensor) -> Tensor:
    """Table 3 on one unpadded pair, in eval mode, float64."""
    for block in trunk.blocks:
        inner = F.relu(norm_of(block.norm_1)(conv(block.convolution_1, grid)))
        inner = norm_of(block.norm_2)(conv(block.convolution_2, inner))
        grid = F.relu(inner + (grid if block.projection is None else conv(block.projection, grid)))
    return F.adaptive_max_pool2d(grid, (1, 1)).flatten(1)


def with_statistics(trunk: nn.Module) -> nn.Module:
    """`trunk` with norms as after training: no mean at 0, no variance at 1, some scales negative."""
    generator = torch.Generator().manual_seed(5)
    for norm in trunk.modules():
        if isinstance(norm, MaskedBatchNorm2d):
            shape = norm.bias.shape
            norm.running_mean.copy_(torch.randn(shape, generator=generator))
            norm.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
            norm.weight.data.copy_(torch.randn(shape, generator=generator))
            norm.bias.data.copy_(torch.randn(shape, generator=generator))
    return trunk.eval()


@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_cube_is_cosine_distance_and_dot_of_every_pair_of_tokens(scale: float, autocast: bool) -> None:
    a, mask_a, b, mask_b = pairs([(4, 7), (1, 2)])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        cube, cells = similarity_cube(a * scale, mask_a, b * scale, mask_b)
    assert cube.dtype == torch.float32
    assert cube.shape == (2, 3, 4, 7)
    assert cells.sum() == 4 * 7 + 1 * 2
    assert not cube.masked_select(~cells).any()
    for number, (i, j) in enumerate([(4, 7), (1, 2)]):
        expected = slow_cube(scale * a[number, :i], scale * b[number, :j]).float()
        torch.testing.assert_close(cube[number : number + 1, :, :i, :j], expected, rtol=1e-5, atol=1e-5 * scale)


def test_equal_and_zero_tokens_have_a_finite_gradient() -> None:
    states, mask = texts([3, 2])
    states[0, 0] = 0
    first, second = states.clone().requires_grad_(), states.clone().requires_grad_()
    cube, _ = similarity_cube(first, mask, second, mask)
    assert (cube[:, 1].diagonal(dim1=1, dim2=2)[mask] < 1e-2).all()
    assert cube[0, 1, 0, 0] == EPS**0.5
    cube.square().sum().backward()
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad.isfinite().all()
    assert second.grad.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_masked_norm_with_every_cell_real_is_batch_norm(training: bool) -> None:
    torch.manual_seed(0)
    ours, plain = MaskedBatchNorm2d(5), nn.BatchNorm2d(5)
    with_statistics(ours)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(ours.state_dict())
    cells = torch.ones(3, 1, 4, 6, dtype=torch.bool)
    for step in range(3):
        grid = torch.randn(3, 5, 4, 6) * 3 + 10 * step
        seen = [grid.clone().requires_grad_() for _ in range(2)]
        outputs = [ours.train(training)(seen[0], cells), plain.train(training)(seen[1])]
        for output in outputs:
            output.pow(3).mean().backward()
        close(outputs[0], outputs[1])
        close(seen[0].grad, seen[1].grad)
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        close(one.grad, other.grad)
    for name, value in plain.state_dict().items():
        close(ours.state_dict()[name], value)


def close(one: Tensor | None, other: Tensor | None) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@slowly
@given(ragged)
def test_masked_norm_takes_its_statistics_of_real_cells_only(lengths: list[tuple[int, int]]) -> None:
    grid, cells = grids(lengths)
    norm, plain = MaskedBatchNorm2d(5), nn.BatchNorm1d(5)
    with_statistics(norm).train()
    plain.load_state_dict(norm.state_dict())
    real = grid.permute(0, 2, 3, 1)[cells[:, 0]]
    result = norm(grid.masked_fill(~cells, 1e3), cells)
    assert not result.masked_select(~cells).any()
    if len(real) > 1:
        close(result.permute(0, 2, 3, 1)[cells[:, 0]], plain(real))
        close(norm.running_mean, plain.running_mean)
        close(norm.running_var, plain.running_var)


def test_running_statistics_move_only_in_training_and_where_the_pass_allows() -> None:
    grid, cells = grids([(4, 3), (2, 5)])
    norm = MaskedBatchNorm2d(5)
    fresh = {name: value.clone() for name, value in norm.state_dict().items()}

    def moved() -> bool:
        return any(not torch.equal(value, fresh[name]) for name, value in norm.state_dict().items())

    with drawing(Pass(seed=1, stage="s", step=1, name="second", update_statistics=False)):
        second = norm(grid, cells)
    assert not moved()
    norm.eval()(grid, cells)
    assert not moved()
    with drawing(Pass(seed=1, stage="s", step=1)):
        clean = norm.train()(grid, cells)
    assert moved()
    assert torch.equal(clean, second)
    assert norm.num_batches_tracked == 1


def test_a_single_cell_has_no_variance_and_moves_no_statistics() -> None:
    norm = MaskedBatchNorm2d(2)
    result = norm(torch.full((1, 2, 1, 1), 7.0), torch.ones(1, 1, 1, 1, dtype=torch.bool))
    assert torch.equal(result, torch.zeros(1, 2, 1, 1))
    assert torch.equal(norm.running_mean, torch.zeros(2))
    assert torch.equal(norm.running_var, torch.ones(2))


def test_masked_norm_keeps_its_statistics_in_float32() -> None:
    grid, cells = grids([(20, 20), (3, 3)])
    norm, wide = MaskedBatchNorm2d(5), MaskedBatchNorm2d(5)
    with torch.autocast("cpu", torch.bfloat16):
        result = norm(grid.bfloat16() + 100, cells)
    wide(grid.bfloat16().add(100).float(), cells)
    assert result.dtype == torch.bfloat16
    assert norm.running_var.dtype == torch.float32
    close(norm.running_var, wide.running_var)


@slowly
@given(ragged)
def test_pooling_is_that_of_each_example_alone(lengths: list[tuple[int, int]]) -> None:
    grid, cells = grids(lengths)
    halved, half_cells = halve_grid(grid, cells)
    highest = grid_max(grid, cells)
    assert not halved.masked_select(~half_cells).any()
    for number, (i, j) in enumerate(lengths):
        alone = grid[number : number + 1, :, :i, :j]
        expected = F.max_pool2d(alone, 2, 2, ceil_mode=True)
        k, m = expected.shape[2:]
        assert torch.equal(halved[number : number + 1, :, :k, :m], expected)
        assert half_cells[number].sum() == k * m
        assert half_cells[number, 0, :k, :m].all()
        assert torch.equal(highest[number : number + 1], F.adaptive_max_pool2d(alone, (1, 1)).flatten(1))


@slowly
@given(ragged, st.sampled_from([2, 5]))
def test_pwim_dcnn_gives_what_each_pair_gives_alone(lengths: list[tuple[int, int]], depth: int) -> None:
    torch.manual_seed(0)
    trunk = PwimDcnnTrunk(config.PwimDcnnTrunk(depth=depth), WIDTH)
    with_statistics(trunk)
    a, mask_a, b, mask_b = pairs(lengths)
    alone = [slow_dcnn(trunk, slow_cube(a[number, :i], b[number, :j])).float() for number, (i, j) in enumerate(lengths)]
    torch.testing.assert_close(trunk(a, mask_a, b, mask_b), torch.cat(alone), rtol=1e-4, atol=1e-4)


@slowly
@given(ragged, st.sampled_from([1, 2]))
def test_pwim_resnet_gives_what_each_pair_gives_alone(lengths: list[tuple[int, int]], depth: int) -> None:
    torch.manual_seed(0)
    trunk = PwimResnetTrunk(config.PwimResnetTrunk(depth=depth), WIDTH)
    with_statistics(trunk)
    a, mask_a, b, mask_b = pairs(lengths)
    alone = [
        slow_resnet(trunk, slow_cube(a[number, :i], b[number, :j])).float() for number, (i, j) in enumerate(lengths)
    ]
    torch.testing.assert_close(trunk(a, mask_a, b, mask_b), torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_pwim_dcnn_is_table_2() -> None:
    trunk = PwimDcnnTrunk(config.PwimDcnnTrunk(), 384)
    shapes = [tuple(layer.weight.shape) for layer in trunk.convolutions]
    assert shapes == [(128, 3, 3, 3), (164, 128, 3, 3), (192, 164, 3, 3), (192, 192, 3, 3), (128, 192, 3, 3)]
    assert [len(norm.weight) for norm in trunk.norms] == [128, 164, 192, 192, 128]
    assert [layer.rate for layer in trunk.dropouts] == [0.5] * 5
    assert sum(parameter.numel() for parameter in trunk.parameters()) == 1_031_148


def test_pwim_resnet_is_table_3() -> None:
    trunk = PwimResnetTrunk(config.PwimResnetTrunk(), 384)
    shapes = [
        [tuple(layer.weight.shape) for layer in block.modules() if isinstance(layer, nn.Conv2d)]
        for block in trunk.blocks
    ]
    inner = (128, 128, 3, 3)
    assert shapes == [[(128, 3, 1, 1), (128, 3, 3, 3), inner], *[[inner, inner]] * 4]
    assert [rate for block in trunk.blocks for rate in (block.dropout_1.rate, block.dropout_2.rate)] == [0.5] * 10
    assert [norm.weight.shape for norm in trunk.modules() if isinstance(norm, MaskedBatchNorm2d)] == [(128,)] * 10
    assert sum(parameter.numel() for parameter in trunk.parameters()) == 1_334_912


@pytest.mark.parametrize(
    ("depth", "sizes"),
    [(2, [128, 128]), (3, [128, 164, 128]), (7, [128, 164, 192, 192, 192, 192, 128])],
)
def test_depth_cuts_or_lengthens_table_2(depth: int, sizes: list[int]) -> None:
    trunk = PwimDcnnTrunk(config.PwimDcnnTrunk(depth=depth), WIDTH)
    assert [layer.out_channels for layer in trunk.convolutions] == sizes


@pytest.mark.parametrize("trunk_class", [PwimDcnnTrunk, PwimResnetTrunk])
def test_statistics_of_a_whole_trunk_stand_still_in_other_passes_and_when_frozen(trunk_class: type[nn.Module]) -> None:
    options = config.PwimDcnnTrunk() if trunk_class is PwimDcnnTrunk else config.PwimResnetTrunk()
    trunk, batch = trunk_class(options, WIDTH), pairs([(3, 4), (6, 2)])
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    with drawing(Pass(seed=1, stage="s", step=1, name="adversarial", update_statistics=False)):
        trunk(*batch)
    trunk.eval()(*batch)
    after = trunk.state_dict()
    assert len(before) > 0
    assert all(torch.equal(after[name], value) for name, value in before.items())


# what is inside a block, computed again


def taught(
    again: bool, monkeypatch: pytest.MonkeyPatch, weights: dict[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], int]:
    """Everything that a pass with gradients leaves of a trunk, and the bytes it kept for the backward pass."""
    monkeypatch.setattr(recomputing, "KEPT_BYTES", -1 if again else 1 << 40)
    monkeypatch.setattr(packed_grid, "available", lambda dtype: False)  # torch alone computes
    torch.manual_seed(0)
    trunk = PwimResnetTrunk(config.PwimResnetTrunk(kind="pwim_resnet", depth=3, dropout=0.5), WIDTH)
    name_places(trunk)
    a, mask_a, b, mask_b = pairs([(9, 4), (5, 11), (12, 12)])
    a.requires_grad_()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), drawing(Pass(1, "stage", 1)):
        given = (a, mask_a, b, mask_b)
        features = trunk(*given) if weights is None else functional_call(trunk, weights, given)
    features.square().sum().backward()  # after the pass, as in training
    assert a.grad is not None
    gradients = {f"{name}.grad": part.grad for name, part in trunk.named_parameters() if part.grad is not None}
    return {"features": features, "states.grad": a.grad, **gradients, **dict(trunk.named_buffers())}, sum(kept.values())


def test_blocks_computed_again_leave_the_same_bits_and_keep_a_fraction(monkeypatch):
    (plain, all_bytes), (again, few_bytes) = (taught(way, monkeypatch) for way in (False, True))
    assert len(plain) > 20
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert plain["blocks.0.norm_1.num_batches_tracked"] == 1
    assert few_bytes < all_bytes / 4


def test_blocks_are_computed_again_with_the_weights_of_their_pass(monkeypatch):
    other = PwimResnetTrunk(config.PwimResnetTrunk(kind="pwim_resnet", depth=3, dropout=0.5), WIDTH)
    weights = {name: part.detach().clone() for name, part in other.named_parameters()}
    (plain, _), (again, _) = (taught(way, monkeypatch, weights) for way in (False, True))
    assert not torch.equal(plain["states.grad"], taught(False, monkeypatch)[0]["states.grad"])
    assert torch.equal(plain["states.grad"], again["states.grad"])


def test_nothing_is_computed_again_outside_a_pass(monkeypatch):
    monkeypatch.setattr(recomputing, "KEPT_BYTES", -1)
    monkeypatch.setattr(recomputing, "checkpoint", None)
    monkeypatch.setattr(packed_grid, "available", lambda dtype: False)
    trunk = PwimResnetTrunk(config.PwimResnetTrunk(kind="pwim_resnet", depth=1, dropout=0.5), WIDTH)
    assert trunk(*pairs([(3, 2)])).requires_grad
    with torch.no_grad(), drawing(Pass(1, "stage", 1)):
        trunk(*pairs([(3, 2)]))
