"""What lies in the term on one batch, and what is wrong with it in plain words. Knows nothing of how it was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from smoothtune.config.regularisers import Masks
from smoothtune.objective.measuring import DROWNED_ABOVE, LOST_BELOW


@dataclass(frozen=True, slots=True)
class Measured:
    """Mean divergence between the clean pass and one with new dropout masks, a random, and the searched perturbation.

    `random` and `adversarial` have the clean pass's masks and the same norms, of which `norm` is the largest (in the norm
    of the options). `surviving` is the share of the searched perturbation's entries that change what they are added to in
    the dtype that is computed in, `norm_needed` the norm at which half of them would.
    """

    dropout: float
    random: float
    adversarial: float
    norm: float
    surviving: float
    norm_needed: float

    def faults(self, masks: Masks) -> Iterator[str]:
        """What keeps a term with such dropout `masks` from being what it is called, and what to change; a sentence each."""
        if self.surviving < LOST_BELOW:
            yield (
                f"the perturbation of norm {self.norm:.3g} is lost: {self.surviving:.0%} of its entries survive the dtype; "
                f"compute in float32, or set a radius of at least {self.norm_needed:.1g}"
            )
        if self.dropout > DROWNED_ABOVE * self.adversarial:
            times = self.dropout / self.adversarial if self.adversarial > 0 else math.inf
            what = (
                'the term is in truth R-Drop; set dropout = "shared" and a larger radius'
                if masks == "independent"
                else "beside what dropout does, the term asks for next to nothing; set a larger radius"
            )
            yield f"dropout alone moves the answers {times:.1g} times further than the perturbation: {what}"
