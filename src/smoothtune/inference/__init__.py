"""Answers from a trained model: for arrays, files and Python. Knows nothing of training."""
