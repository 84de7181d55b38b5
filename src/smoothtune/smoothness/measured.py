"""What lies in the term on one batch, and what is wrong with it in plain words. Knows nothing of how it was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from smoothtune.config.regularisers import Masks
from smoothtune.objective.measuring import DROWNED_ABOVE, LOST_BELOW, in_words


@dataclass(frozen=True, slots=True)
class Measured:
    """Mean divergence between the clean pass and one with new dropout masks, a random, and the searched perturbation.

    `random` and `adversarial` have the clean pass's masks and the same norms, of which `norm` is the largest (in the norm
    of the options). `surviving` is the share of the searched perturbation's entries that change what they are added to in
    the dtype that is computed in, `norm_needed` the norm at which half of them would. `masks` are the term's dropout masks,
    `key` is the option that has to grow for a larger norm: `step_size` where the search ended short of the radius.
    """

    dropout: float
    random: float
    adversarial: float
    norm: float
    surviving: float
    norm_needed: float
    masks: Masks
    key: str

    def faults(self) -> Iterator[str]:
        """What keeps the term from being what it is called, and what to change; a sentence each."""
        if self.surviving < LOST_BELOW:
            yield (
                f"the perturbation of norm {self.norm:.3g} is lost: {self.surviving:.0%} of its entries survive the dtype; "
                f"compute in float32, or set a {self.key} of at least {self.norm_needed:.1g}"
            )
        if self.dropout > DROWNED_ABOVE * self.adversarial:
            beside = ", and the perturbation does not"
            if self.adversarial > 0:
                beside = f" {in_words(self.dropout / self.adversarial)} times further than the perturbation"
            what = (
                f'the term is in truth R-Drop; set dropout = "shared" and a larger {self.key}'
                if self.masks == "independent"
                else f"beside what dropout does, the term asks for next to nothing; set a larger {self.key}"
            )
            yield f"dropout alone moves the answers{beside}: {what}"
