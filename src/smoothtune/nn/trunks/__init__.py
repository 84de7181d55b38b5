"""Trunks: token states to one feature vector, one file per idea; `trunk` is the seam that all share."""
