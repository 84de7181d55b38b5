"""Placeholder until the kernels of this file are written."""


def available() -> bool:
    """No."""
    return False
