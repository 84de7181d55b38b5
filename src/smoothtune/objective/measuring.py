"""What a regulariser's perturbation does to a batch, beside chance and beside dropout. Knows nothing of models or stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from smoothtune.config.regularisers import FreelbOptions, Masks, Norm, Per, R3fOptions, SmoothnessOptions, VatOptions
from smoothtune.objective.look import Look, Regulariser
from smoothtune.objective.perturbation import masked, norms
from smoothtune.objective.regularisers import Term

# Below this share of entries that change the states, the dtype cannot carry the perturbation.
LOST_BELOW = 0.5
# Below this share of the radius, the search has ended short of it.
SHORT_BELOW = 0.9
# Above this many times, dropout moves the answers so much further that the perturbation does not count.
DROWNED_ABOVE = 100.0


@dataclass(frozen=True, slots=True)
class Search:
    """How a regulariser looks for a perturbation (R, T, D) of the input of `layer`: with which masks, by which norm.

    `key` is the option that bounds the norm. With a `radius` the norm may stay below it, and `step_size` is what bounds it
    then. `compares` where the term is a distance between two passes.
    """

    perturbation: Callable[[Look], Tensor]
    layer: int
    norm: Norm
    per: Per
    masks: Masks
    key: str = "radius"
    radius: float | None = None
    compares: bool = True

    def key_at(self, norm: float) -> str:
        """The option that has to grow for a perturbation larger than `norm`, which is what was found."""
        return "step_size" if self.radius is not None and norm < SHORT_BELOW * self.radius else self.key


def search_of(regulariser: Regulariser) -> Search | None:
    """The search of a regulariser, None where it has none."""
    if not isinstance(regulariser, Term):
        return None
    options = regulariser.options
    if not isinstance(options, SmoothnessOptions | R3fOptions | VatOptions | FreelbOptions):
        return None
    found, layer, masks = regulariser.perturbation, regulariser.layers[0], options.dropout
    if isinstance(options, SmoothnessOptions):
        radius = options.radius if options.projection == "ball" else None
        return Search(found, layer, options.norm, options.per, masks, radius=radius)
    if isinstance(options, R3fOptions):  # its draw is all the search it has
        return Search(found, layer, "inf", "token", masks, key="noise")
    if isinstance(options, VatOptions):
        return Search(found, layer, "2", "text", masks)
    return Search(found, layer, "2", "text", masks, radius=options.radius, compares=False)


def in_words(times: float) -> str:
    """A large factor with one digit that counts, written out: 400,000."""
    return f"{float(f'{times:.1g}'):,.0f}"


def dropout_part(look: Look) -> dict[str, float]:
    """`dropout`: the mean divergence between the clean pass and one with new masks and no perturbation."""
    with torch.no_grad():
        return {"dropout": _apart(look, look.logits_of(dropout="fresh"))}


def perturbation_parts(look: Look, search: Search, dtype: torch.dtype) -> dict[str, float]:
    """What the perturbation that `search` finds does to the clean pass, whatever masks it was found with.

    `random` and `adversarial` are mean divergences under the clean pass's masks: of normal draws rescaled to the norms of
    what was found, and of what was found. `norm` is its largest norm. `surviving` is the share of its entries that change
    the states in the compute dtype `dtype`; `norm_needed` is the norm at which half of them would. Entries are those of
    real tokens that are not 0; where there are none, both are nan. Cost: the search and two forward passes.
    """
    found, layer = search.perturbation(look), search.layer
    random = rescaled(look.draw(found, "normal"), found, look.mask, search)
    norm = float(norms(found, look.mask, search.norm, search.per).max())
    surviving, factor = _surviving(found, look.states_at(layer), dtype)
    with torch.no_grad():
        return {
            "random": _apart(look, look.logits_of(random, layer=layer)),
            "adversarial": _apart(look, look.logits_of(found, layer=layer)),
            "norm": norm,
            "surviving": surviving,
            "norm_needed": factor * norm,
        }


def rescaled(direction: Tensor, like: Tensor, mask: Tensor, search: Search) -> Tensor:
    """`direction` with the norms of `like` in each token or text, both (R, T, D); 0 where `mask` (R, T) is False."""
    direction = masked(direction, mask)
    have = norms(direction, mask, search.norm, search.per)
    scale = norms(like, mask, search.norm, search.per) / torch.where(have == 0, 1.0, have)
    return (direction.double() * scale).to(like.dtype)


def _apart(look: Look, logits: Tensor) -> float:
    return float(look.divergence(logits, look.logits.detach()).mean())


def _surviving(perturbation: Tensor, states: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """The share of the entries that change the states, both (R, T, D), and the factor at which half of them would."""
    entries = perturbation != 0
    d, x = perturbation[entries], states[entries]
    if not len(d):
        return float("nan"), float("nan")
    share = ((x + d.to(x.dtype)).to(dtype) != x.to(dtype)).double().mean()
    spacing = torch.finfo(dtype).eps * torch.exp2(torch.frexp(x.float()).exponent.double() - 1)
    spacing = torch.where(x == 0, 0.0, spacing)  # what dropout has set to 0 takes anything
    return float(share), float((spacing / 2 / d.double().abs()).median())
