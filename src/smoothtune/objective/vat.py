"""Virtual adversarial training: one-sided KL in the worst direction of a given length (Miyato et al., 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothtune.config.regularisers import VatOptions
from smoothtune.objective.look import Look
from smoothtune.objective.passes import clean_side, dropout_mode
from smoothtune.objective.perturbation import norms, projected


class Vat:
    """Mean KL(f(x) || f(x + r)), the clean side held fixed, r of 2-norm `radius` (Miyato et al., 2018, section 3).

    At r = 0 the divergence is 0 and so is its gradient; r is therefore the direction in which it curves most, found by
    power iteration: the gradient at a step of length xi is the Hessian's product with that step (Algorithm 1). The length
    is that of a text, over all its real tokens; the two texts of a pair are perturbed at once, each to the radius, so that
    what a text may be moved does not depend on its partner. Cost as of `smoothness`.
    """

    def __init__(self, options: VatOptions, layer: int) -> None:
        """`layer` is the number that `options.layer` stands for in this encoder."""
        self.options = options
        self.layers = (layer,)

    def __call__(self, look: Look, factor: float = 1.0) -> tuple[Tensor, dict[str, float]]:
        """`factor` times the term, a scalar; its `value` without the factor and the `norm` of the perturbation."""
        clean = clean_side(look, self.options.dropout, learn=False)
        r = self._search(look, clean)
        value = self._divergence(look, clean, r, learn=True)
        return factor * value, {"value": float(value.detach()), "norm": self.norm(look, r)}

    def perturbation(self, look: Look) -> Tensor:
        """The perturbation that the search finds, (R, T, D) float32 without gradient."""
        return self._search(look, clean_side(look, self.options.dropout, learn=False))

    def norm(self, look: Look, d: Tensor) -> float:
        """The largest 2-norm of a text of `d` (R, T, D)."""
        return float(norms(d, look.mask, "2", "text").max())

    def _search(self, look: Look, clean: Tensor) -> Tensor:
        options, (layer,) = self.options, self.layers
        d = _scaled(look, look.draw(look.states_at(layer), "normal"), options.finite_difference)
        for step in range(options.steps):
            d.requires_grad_()
            (gradient,) = torch.autograd.grad(self._divergence(look, clean, d, learn=False), d)
            d = _scaled(look, gradient, options.radius if step == options.steps - 1 else options.finite_difference)
        return d

    def _divergence(self, look: Look, clean: Tensor, d: Tensor, *, learn: bool) -> Tensor:
        """Mean KL of the batch from the clean to the perturbed logits, a scalar."""
        mode = dropout_mode(self.options.dropout)
        return look.one_sided(clean, look.logits_of(d, layer=self.layers[0], dropout=mode, learn=learn)).mean()


def _scaled(look: Look, d: Tensor, length: float) -> Tensor:
    """Every text of `d` (R, T, D) at 2-norm `length`; what is 0 stays 0."""
    return projected(d, look.mask, projection="sphere", radius=length, norm="2", per="text")
