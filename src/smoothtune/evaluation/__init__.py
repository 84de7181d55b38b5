"""Metrics, intervals, scores over tasks, paired comparison, the words-alone baseline. Knows nothing of training."""
