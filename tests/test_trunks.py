"""Every trunk kind through one table: shapes, padding, gradients, replay, low precision."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from smoothtune.config import trunks as config
from smoothtune.errors import ConfigurationError
from smoothtune.nn.dropout import name_places
from smoothtune.nn.trunks.conv_bilstm import ConvBilstmTrunk
from smoothtune.nn.trunks.cosine import CosineTrunk
from smoothtune.nn.trunks.pooled import ClsTrunk, JointTrunk, MeanTrunk
from smoothtune.nn.trunks.siamese import SiameseTrunk
from smoothtune.registry import TABLE, resolve
from smoothtune.runtime.random import Pass, drawing

WIDTH = 16
LENGTHS_A, LENGTHS_B = [7, 1, 4, 12, 2], [3, 1, 9, 5, 2]
CASES = {
    "cls": (config.ClsTrunk(), 16),
    "mean": (config.MeanTrunk(), 16),
    "conv_bilstm": (config.ConvBilstmTrunk(), 16),
    "conv_bilstm, mean, two layers, kernel 5": (config.ConvBilstmTrunk(pool="mean", layers=2, kernel=5), 16),
    "conv_bilstm, kernel 1": (config.ConvBilstmTrunk(kernel=1), 16),
    "siamese": (config.SiameseTrunk(), 64),
    "siamese, cls": (config.SiameseTrunk(pooling="cls"), 64),
    "cosine": (config.CosineTrunk(), 1),
    "cosine, cls": (config.CosineTrunk(pooling="cls"), 1),
    "joint": (config.JointTrunk(), 16),
    "joint, mean": (config.JointTrunk(pooling="mean"), 16),
    "pwim_dcnn": (config.PwimDcnnTrunk(), 128),
    "pwim_dcnn, depth 2": (config.PwimDcnnTrunk(depth=2), 128),
    "pwim_resnet": (config.PwimResnetTrunk(), 128),
    "pwim_resnet, depth 1": (config.PwimResnetTrunk(depth=1), 128),
}
every_case = pytest.mark.parametrize("case", CASES)


def make(case: str, *, rate: float | None = None) -> nn.Module:
    options = CASES[case][0]
    if rate is not None and hasattr(options, "dropout"):
        options = options.model_copy(update={"dropout": rate})
    torch.manual_seed(3)
    trunk: nn.Module = resolve("trunks", options.kind)(options, WIDTH)
    for parameter in trunk.parameters():
        if parameter.dim() == 1:  # a bias of 0 would hide what leaks from padding
            nn.init.normal_(parameter)
    name_places(trunk)
    return trunk


def text(lengths: list[int], seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    states = torch.randn(len(lengths), max(lengths), WIDTH, generator=generator)
    return states.masked_fill(~mask.unsqueeze(2), 0), mask


def inputs(case: str) -> list[Tensor]:
    separate = CASES[case][0].input == "separate"
    return [*text(LENGTHS_A, 0), *(text(LENGTHS_B, 1) if separate else ())]


def longer(given: list[Tensor], garbage: float) -> list[Tensor]:
    """The same texts with three more padded places, and `garbage` in every padded place."""
    states = [torch.cat([part, torch.zeros(len(part), 3, WIDTH)], dim=1) for part in given[::2]]
    masks = [torch.cat([part, torch.zeros(len(part), 3, dtype=torch.bool)], dim=1) for part in given[1::2]]
    filled = [part.masked_fill(~mask.unsqueeze(2), garbage) for part, mask in zip(states, masks, strict=True)]
    return [tensor for pair in zip(filled, masks, strict=True) for tensor in pair]


def row(given: list[Tensor], number: int) -> list[Tensor]:
    """One example alone, without padding."""
    cut = [int(mask[number].sum()) for mask in given[1::2] for _ in range(2)]
    return [part[number : number + 1, :length] for part, length in zip(given, cut, strict=True)]


def test_the_table_has_every_kind() -> None:
    kinds = {options.kind for options, _ in CASES.values()}
    assert kinds == {cls.model_fields["kind"].default for cls in get_args(get_args(config.TrunkOptions)[0])}
    assert kinds == set(TABLE["trunks"])
    assert len(kinds) == 8


@every_case
def test_shape_is_examples_by_features(case: str) -> None:
    trunk = make(case).eval()
    assert trunk.features == CASES[case][1]
    assert trunk(*inputs(case)).shape == (len(LENGTHS_A), trunk.features)


@every_case
def test_an_example_alone_gives_its_row_of_the_batch(case: str) -> None:
    trunk, given = make(case).eval(), inputs(case)
    together = trunk(*given)
    alone = torch.cat([trunk(*row(given, number)) for number in range(len(LENGTHS_A))])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@every_case
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("garbage", [1e4, float("nan"), float("inf")])
def test_padding_changes_nothing(case: str, training: bool, garbage: float) -> None:
    given = inputs(case)
    plain = make(case, rate=0.0).train(training)(*given)
    padded = make(case, rate=0.0).train(training)(*longer(given, garbage))
    torch.testing.assert_close(padded, plain, rtol=1e-4, atol=1e-4)


@every_case
@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_every_parameter_and_the_states(case: str, training: bool) -> None:
    trunk, given = make(case).train(training), longer(inputs(case), float("nan"))
    states = [part.requires_grad_() for part in given[::2]]
    with drawing(Pass(seed=1, stage="s", step=1)):
        trunk(*given).square().sum().backward()
    for name, parameter in trunk.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.dim() == 1 or parameter.grad.any(), name
    for part, mask in zip(states, given[1::2], strict=True):
        assert part.grad is not None
        assert part.grad.isfinite().all()
        assert part.grad.any()
        assert not part.grad[~mask].any()


@every_case
def test_the_same_pass_draws_the_same_dropout(case: str) -> None:
    trunk, given = make(case).train(), inputs(case)

    def features(name: str) -> Tensor:
        with drawing(Pass(seed=1, stage="s", step=1, name=name, update_statistics=False)):
            result: Tensor = trunk(*given)
            return result

    first = features("clean")
    assert torch.equal(features("clean"), first)
    drops = not case.startswith("cosine")
    assert torch.equal(features("second"), first) is not drops


@every_case
def test_bfloat16_autocast_runs_forward_and_backward(case: str) -> None:
    trunk, given = make(case).train(), longer(inputs(case), float("nan"))
    states = [part.mul(20).requires_grad_() for part in given[::2]]
    with torch.autocast("cpu", torch.bfloat16):
        features = trunk(*[tensor for pair in zip(states, given[1::2], strict=True) for tensor in pair])
    features.float().square().sum().backward()
    assert features.isfinite().all()
    found = [tensor.grad for tensor in [*states, *trunk.parameters()]]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in found)


def test_pooled_trunks_give_the_first_or_the_mean_state() -> None:
    states, mask = text(LENGTHS_A, 0)
    mean = torch.stack([states[number, :length].mean(dim=0) for number, length in enumerate(LENGTHS_A)])
    assert torch.equal(ClsTrunk(config.ClsTrunk(), WIDTH).eval()(states, mask), states[:, 0])
    assert torch.equal(JointTrunk(config.JointTrunk(), WIDTH).eval()(states, mask), states[:, 0])
    torch.testing.assert_close(MeanTrunk(config.MeanTrunk(), WIDTH).eval()(states, mask), mean)


def test_siamese_sets_four_views_side_by_side() -> None:
    a, mask_a = text(LENGTHS_A, 0)
    b, mask_b = text(LENGTHS_B, 1)
    u, v = a[:, 0], b[:, 0]
    features = SiameseTrunk(config.SiameseTrunk(pooling="cls"), WIDTH).eval()(a, mask_a, b, mask_b)
    assert torch.equal(features, torch.cat([u, v, (u - v).abs(), u * v], dim=1))


def test_cosine_agrees_with_torch_and_has_a_gradient_at_zero() -> None:
    a, mask_a = text(LENGTHS_A, 0)
    b, mask_b = text(LENGTHS_B, 1)
    trunk = CosineTrunk(config.CosineTrunk(pooling="cls"), WIDTH)
    expected = torch.cosine_similarity(a[:, 0], b[:, 0]).unsqueeze(1)
    torch.testing.assert_close(trunk(a, mask_a, b, mask_b), expected, rtol=1e-5, atol=1e-5)
    zeros = torch.zeros_like(a).requires_grad_()
    trunk(zeros, mask_a, b, mask_b).sum().backward()
    assert zeros.grad is not None
    assert zeros.grad.isfinite().all()


@pytest.mark.parametrize("layers", [1, 3])
def test_bilstm_is_torchs_bidirectional_lstm_on_packed_texts(layers: int) -> None:
    trunk = make("conv_bilstm").eval() if layers == 1 else ConvBilstmTrunk(config.ConvBilstmTrunk(layers=3), WIDTH)
    plain = nn.LSTM(WIDTH, WIDTH // 2, layers, batch_first=True, bidirectional=True)
    for layer in range(layers):
        for suffix, lstm in (("", trunk.bilstm.ahead[layer]), ("_reverse", trunk.bilstm.back[layer])):
            for name, parameter in lstm.named_parameters():
                getattr(plain, name.replace("_l0", f"_l{layer}") + suffix).data.copy_(parameter)
    states, mask = text(LENGTHS_A, 0)
    packed = nn.utils.rnn.pack_padded_sequence(states, mask.sum(dim=1), batch_first=True, enforce_sorted=False)
    expected = nn.utils.rnn.pad_packed_sequence(plain(packed)[0], batch_first=True)[0]
    torch.testing.assert_close(trunk.bilstm(states, mask)[mask], expected[mask])


def test_conv_bilstm_reads_as_the_paper_says() -> None:
    trunk = make("conv_bilstm").eval()
    assert trunk.convolution.weight.shape == (WIDTH, WIDTH, 3)
    states, mask = text([6], 0)
    convolved = torch.relu(trunk.convolution(states.mT)).mT
    assert convolved.shape == states.shape
    torch.testing.assert_close(trunk(states, mask), trunk.bilstm(convolved, mask).amax(dim=1))


def test_bilstms_keep_a_gradient_on_cudnn_in_eval_mode() -> None:
    trunk = make("conv_bilstm").eval()
    assert not trunk.bilstm.training
    assert all(lstm.training for lstm in [*trunk.bilstm.ahead, *trunk.bilstm.back])


def test_conv_bilstm_refuses_an_odd_width() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ConvBilstmTrunk(config.ConvBilstmTrunk(), 15)
    assert str(caught.value) == (
        'A trunk of kind "conv_bilstm" cannot be built.\n'
        "  encoder: its width 15 is odd and has no two halves for the BiLSTM; take another trunk kind"
    )
