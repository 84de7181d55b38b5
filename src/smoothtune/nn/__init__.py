"""Modules: encoder, trunks, outputs, and the model that joins them. Knows nothing of files of data or of training."""
