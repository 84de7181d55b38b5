"""R3F: a random perturbation of a layer's input should change nothing (Aghajanyan et al., 2021). No search."""

from __future__ import annotations

from torch import Tensor

from smoothtune.config.regularisers import R3fOptions
from smoothtune.objective.look import Look
from smoothtune.objective.passes import clean_side, dropout_mode
from smoothtune.objective.perturbation import masked


class R3f:
    """Mean symmetric KL between f(x) and f(x + z), z normal or uniform noise (Aghajanyan et al., 2021).

    Both sides carry gradient. The authors' code draws new dropout masks for the second pass (`independent`), so at the
    paper's noise of 1e-5 the term is in truth R-Drop; `shared` leaves the noise alone. R4F's bound on the spectral norm
    of the output is not here. Cost: one more pass, forward and backward.
    """

    def __init__(self, options: R3fOptions, layer: int) -> None:
        """`layer` is the number that `options.layer` stands for in this encoder."""
        self.options = options
        self.layers = (layer,)

    def __call__(self, look: Look, factor: float = 1.0) -> tuple[Tensor, dict[str, float]]:
        """`factor` times the term, a scalar; its `value` without the factor."""
        options = self.options
        clean = clean_side(look, options.dropout)
        z = self.perturbation(look)
        noised = look.logits_of(z, layer=self.layers[0], dropout=dropout_mode(options.dropout))
        value = look.divergence(noised, clean).mean()
        return factor * value, {"value": float(value.detach())}

    def perturbation(self, look: Look) -> Tensor:
        """The noise z of this look, (R, T, D) float32."""
        draws = look.draw(look.states_at(self.layers[0]), self.options.distribution)
        return masked(self.options.noise * draws, look.mask)
