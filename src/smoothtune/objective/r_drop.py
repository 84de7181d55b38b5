"""R-Drop: two passes with different dropout masks should agree (Liang et al., 2021). It perturbs nothing else."""

from __future__ import annotations

from torch import Tensor

from smoothtune.config.regularisers import RDropOptions
from smoothtune.objective.look import Look


class RDrop:
    """weight * (KL(p || q) + KL(q || p)) / 2, plus the second pass's own loss (Liang et al., 2021, equations 1 to 3).

    p and q are the answers of two passes with dropout; both carry gradient. For regression, which the paper does not
    treat, both one-sided distances are the squared difference. The second loss counts as much as the first,
    whatever the weight. Cost: one more pass, forward and backward.
    """

    layers = ()

    def __init__(self, options: RDropOptions) -> None:
        self.options = options

    def __call__(self, look: Look, factor: float = 1.0) -> tuple[Tensor, dict[str, float]]:
        """`factor` times the mean divergence, plus the second loss as it is, a scalar; the `value` of the divergence."""
        second = look.logits_of(dropout="fresh")
        value = (look.one_sided(look.logits, second) + look.one_sided(second, look.logits)).mean() / 2
        term, record = factor * value, {"value": float(value.detach())}
        if self.options.second_loss:
            loss = look.loss_of(second).mean()
            term, record["loss"] = term + self.options.every * loss, float(loss.detach())
        return term, record
