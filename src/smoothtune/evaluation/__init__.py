"""Metrics, intervals, scores over tasks, each class, paired comparison, baselines. Knows nothing of training."""
