"""From data files to checked rows, tokens, batches and their order. Knows nothing of models, losses and training."""
