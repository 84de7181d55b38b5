"""Adversarial smoothness: how far the worst small perturbation of a layer's input moves the answers.

R = mean over the batch of max over norm(d) <= radius of l(f(x + d), f(x)), l the divergence of the task's kind (Jiang et
al., 2020, section 3.1; Wang, section 3.1, equation 3). Cost, with a plain step 3 forward passes: 5 more at layer 0 and one
search step. Knows nothing of weights, tasks or how often it is asked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smoothtune.config.regularisers import SmoothnessOptions
from smoothtune.objective.look import Look
from smoothtune.objective.passes import clean_side, dropout_mode
from smoothtune.objective.perturbation import masked, moved, norms, projected


class Smoothness:
    """The term, and the search for the perturbation by itself.

    The search (Jiang et al., 2020, Algorithm 1; Wang, Appendix A) begins at normal noise, which is not projected: no source
    does, and as there is a step at least, what is used always is. A step climbs the mean divergence of the batch, the
    clean side held fixed. SMART divides the gradient of each example by its norm and Wang names no reduction, so that the
    scale is ours to choose; mt-dnn sums over the batch. It matters for `direction = "raw"` alone.
    """

    def __init__(self, options: SmoothnessOptions, layer: int) -> None:
        """`layer` is the number that `options.layer` stands for in this encoder."""
        self.options = options
        self.layers = (layer,)

    def __call__(self, look: Look, factor: float = 1.0) -> tuple[Tensor, dict[str, float]]:
        """`factor` times the term, a scalar; its `value` without the factor and the `norm` of the perturbation.

        Both sides of the divergence carry gradient, unless `detach_clean`.
        """
        options = self.options
        clean = clean_side(look, options.dropout, learn=not options.detach_clean)
        d = self._search(look, clean.detach())
        value = self._divergence(look, clean, d, learn=True)
        return factor * value, {"value": float(value.detach()), "norm": self.norm(look, d)}

    def perturbation(self, look: Look) -> Tensor:
        """The perturbation that the search finds, (R, T, D) float32 without gradient."""
        return self._search(look, clean_side(look, self.options.dropout, learn=False))

    def norm(self, look: Look, d: Tensor) -> float:
        """The largest norm, as the options mean it, of a token or text of `d` (R, T, D)."""
        return float(norms(d, look.mask, self.options.norm, self.options.per).max())

    def _search(self, look: Look, clean: Tensor) -> Tensor:
        options, (layer,) = self.options, self.layers
        d = masked(options.noise * look.draw(look.states_at(layer), "normal"), look.mask)
        for _ in range(options.steps):
            d = self._climbed(look, clean, d)
        return d

    def _climbed(self, look: Look, clean: Tensor, d: Tensor) -> Tensor:
        """One step of the search, and back to the radius."""
        options = self.options
        d = d.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self._divergence(look, clean, d, learn=False), d)
        d = moved(
            d.detach(),
            gradient,
            look.mask,
            step_size=options.step_size,
            direction=options.direction,
            norm=options.norm,
            per=options.per,
        )
        return projected(
            d, look.mask, projection=options.projection, radius=options.radius, norm=options.norm, per=options.per
        )

    def _divergence(self, look: Look, clean: Tensor, d: Tensor, *, learn: bool) -> Tensor:
        """Mean divergence of the batch between the perturbed and the clean logits, a scalar."""
        mode = dropout_mode(self.options.dropout)
        return look.divergence(look.logits_of(d, layer=self.layers[0], dropout=mode, learn=learn), clean).mean()
