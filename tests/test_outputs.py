"""Outputs: how each kind reads its features, and where regressions start."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from smoothtune.errors import UsageError
from smoothtune.nn.outputs import LinearOutput, TwoLayerOutput
from smoothtune.registry import TABLE, resolve

OUTPUTS = [LinearOutput, TwoLayerOutput]
every_output = pytest.mark.parametrize("output", OUTPUTS)
FEATURES = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))


def raw(module: nn.Module, features: Tensor) -> Tensor:
    """What the last linear layer gives, by hand."""
    if isinstance(module, TwoLayerOutput):
        features = features @ module.hidden.weight.T + module.hidden.bias
    assert isinstance(module, LinearOutput | TwoLayerOutput)
    return features @ module.linear.weight.T + module.linear.bias


def test_the_table_has_every_kind() -> None:
    assert [resolve("outputs", kind) for kind in TABLE["outputs"]] == OUTPUTS
    assert len(OUTPUTS) == 2


@every_output
def test_classification_gives_logits(output: type[nn.Module]) -> None:
    module = output(12, 5, kind="classification")
    torch.testing.assert_close(module(FEATURES), raw(module, FEATURES), rtol=1e-4, atol=1e-5)
    assert module(FEATURES).shape == (6, 5)


@every_output
def test_binary_gives_one_logit(output: type[nn.Module]) -> None:
    module = output(12, 1, kind="binary")
    torch.testing.assert_close(module(FEATURES), raw(module, FEATURES).squeeze(1), rtol=1e-4, atol=1e-5)
    assert module(FEATURES[:1]).shape == (1,)


@every_output
@pytest.mark.parametrize("squash", [False, True])
def test_regression_gives_label_units(output: type[nn.Module], squash: bool) -> None:
    module = output(12, 1, kind="regression", value_range=(-1.0, 5.0), squash=squash)
    z = raw(module, FEATURES).squeeze(1)
    expected = -1 + 6 * (z.sigmoid() if squash else z)
    torch.testing.assert_close(module(FEATURES), expected, rtol=1e-4, atol=1e-5)
    assert module(FEATURES).shape == (6,)
    if squash:
        extreme = module(FEATURES * 1e4)
        assert extreme.min() >= -1
        assert extreme.max() <= 5


@pytest.mark.parametrize("squash", [False, True])
def test_regressions_start_in_the_middle_of_their_range(squash: bool) -> None:
    linear = LinearOutput(12, 1, kind="regression", value_range=(0.0, 5.0), squash=squash)
    two = TwoLayerOutput(12, 1, kind="regression", value_range=(0.0, 5.0), squash=squash)
    nn.init.zeros_(two.hidden.bias)
    for module in (linear, two):
        torch.testing.assert_close(module(torch.zeros(3, 12)), torch.full((3,), 2.5))


@every_output
@pytest.mark.parametrize(("kind", "classes"), [("classification", 4), ("binary", 1), ("regression", 1)])
def test_float32_whatever_autocast_does(output: type[nn.Module], kind: str, classes: int) -> None:
    module = output(12, classes, kind=kind, value_range=(0.0, 5.0) if kind == "regression" else None)
    with torch.autocast("cpu", torch.bfloat16):
        under = module(FEATURES)
        narrow = module(FEATURES.bfloat16())
    assert under.dtype == narrow.dtype == torch.float32
    assert torch.equal(under, module(FEATURES))
    under.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_two_layers_are_the_tables_two_linear_rows() -> None:
    module = TwoLayerOutput(128, 3, kind="classification")
    shapes = [tuple(parameter.shape) for parameter in module.parameters()]
    assert shapes == [(1024, 128), (1024,), (3, 1024), (3,)]


@every_output
@pytest.mark.parametrize(
    ("classes", "settings", "message"),
    [
        (1, {"kind": "classification"}, "classes: a classification output needs 2 or more, got 1"),
        (2, {"kind": "binary"}, "classes: a binary output gives one number, got 2; pass 1"),
        (
            3,
            {"kind": "regression", "value_range": (0.0, 1.0)},
            "classes: a regression output gives one number, got 3; pass 1",
        ),
        (
            1,
            {"kind": "binary", "squash": True},
            "value_range and squash: they are for regression, got them for binary; leave them out",
        ),
        (
            1,
            {"kind": "regression"},
            "value_range: a regression output needs (low, high) with low < high, got None",
        ),
        (
            1,
            {"kind": "regression", "value_range": (5.0, 5.0)},
            "value_range: a regression output needs (low, high) with low < high, got (5.0, 5.0)",
        ),
    ],
)
def test_what_does_not_fit_the_kind_is_refused(
    output: type[nn.Module], classes: int, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        output(12, classes, **settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("kind", "squash", "expected"),
    [
        ("regression", False, [0.0, 2.5, 5.0]),
        ("regression", True, [0.0335, 2.5, 4.9665]),
        ("binary", False, [-5.0, 0.0, 5.0]),
    ],
)
def test_a_single_feature_begins_as_a_rising_map(kind, squash, expected):
    value_range = (0.0, 5.0) if kind == "regression" else None
    output = LinearOutput(1, 1, kind=kind, value_range=value_range, squash=squash)
    found = output(torch.tensor([[0.0], [0.5], [1.0]]))
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-3, rtol=0)
