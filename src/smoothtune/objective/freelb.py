"""FreeLB: the task's loss under ascent steps on a layer's input, every one of which teaches the weights (Zhu et al., 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothtune.config.regularisers import FreelbOptions
from smoothtune.objective.look import Look
from smoothtune.objective.passes import dropout_mode
from smoothtune.objective.perturbation import masked, moved, norms, projected


class Freelb:
    """Mean over K passes of the loss at d_0 .. d_(K-1) (Zhu et al., 2020, section 3.2, Algorithm 1).

    d_0 is uniform, scaled by 1 / sqrt(numbers in the text); a step adds `step_size` g / ||g||_F per text and goes back to
    the ball. The last pass is followed by no step, as its perturbation would be used by none. With K = 1 the perturbation
    is thus random. In the paper this replaces the clean loss; here it is added to it, with a weight. Masks are those of the
    clean pass in all passes (section 3.3), or new ones in each (`independent`).

    A pass's graph gives the gradient of its perturbation first and that of the weights later, so K graphs are held at a
    time. Cost: K passes forward and backward, and K - 1 backward passes to the perturbation.
    """

    def __init__(self, options: FreelbOptions, layer: int) -> None:
        """`layer` is the number that `options.layer` stands for in this encoder."""
        self.options = options
        self.layers = (layer,)

    def __call__(self, look: Look, factor: float = 1.0) -> tuple[Tensor, dict[str, float]]:
        """`factor` times the mean loss, a scalar; its `value` without the factor and the `norm` of the last perturbation."""
        d = self._start(look)
        losses = [self._loss(look, d)]
        for _ in range(self.options.steps - 1):
            (gradient,) = torch.autograd.grad(losses[-1], d, retain_graph=True)
            d = self._climbed(look, d.detach(), gradient).requires_grad_()
            losses.append(self._loss(look, d))
        value = torch.stack(losses).mean()
        norm = float(norms(d.detach(), look.mask, "2", "text").max())
        return factor * value, {"value": float(value.detach()), "norm": norm}

    def perturbation(self, look: Look) -> Tensor:
        """The perturbation of the last pass, (R, T, D) float32 without gradient."""
        d = self._start(look)
        for _ in range(self.options.steps - 1):
            (gradient,) = torch.autograd.grad(self._loss(look, d, learn=False), d)
            d = self._climbed(look, d.detach(), gradient).requires_grad_()
        return d.detach()

    def _start(self, look: Look) -> Tensor:
        """d_0, (R, T, D): a 2-norm of `noise` per text at most."""
        draws = masked(look.draw(look.states_at(self.layers[0]), "uniform"), look.mask)
        numbers = look.mask.sum(1).clamp(min=1) * draws.shape[-1]
        return (draws * (self.options.noise / numbers.sqrt()).view(-1, 1, 1)).requires_grad_()

    def _loss(self, look: Look, d: Tensor, *, learn: bool = True) -> Tensor:
        mode = dropout_mode(self.options.dropout)
        return look.loss_of(look.logits_of(d, layer=self.layers[0], dropout=mode, learn=learn)).mean()

    def _climbed(self, look: Look, d: Tensor, gradient: Tensor) -> Tensor:
        size, radius = self.options.step_size, self.options.radius
        d = moved(d, gradient, look.mask, step_size=size, direction="normalised", norm="2", per="text")
        return projected(d, look.mask, projection="ball", radius=radius, norm="2", per="text")
