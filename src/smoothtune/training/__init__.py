"""Step module, optimiser, loop, stopping. Is given batches and an `evaluate` function; knows nothing of files or printing."""
