"""Kernels as other processors would build them, on the one at hand."""
