"""Losses, divergences, weighting, and the seam for regularisers: functions of tensors. Sees neither models nor data."""
