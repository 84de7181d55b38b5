"""Adversarial smoothness for any PyTorch loop: a function of a tensor, its logits, and one more term of the loss.

It knows no encoder, data, trunk or trainer of ours: whatever maps embeddings or features to logits will do.
"""

from smoothtune.smoothness.measured import Measured
from smoothtune.smoothness.passes import Clean, Run, compute_dtype
from smoothtune.smoothness.term import Smoothness

__all__ = ["Clean", "Measured", "Run", "Smoothness", "compute_dtype"]
