"""The tensors of a safetensors file that a stranger wrote. Knows nothing of what the weights are for."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from smoothtune.bounded import UnreadableError, check_plain, reason_of


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name: no more memory than the file is large, since the library compares both.

    Raises `OSError` when there is no such file, and `UnreadableError` when it is no whole safetensors file, a link out of
    its folder, or holds numbers that are not finite.
    """
    check_plain(path, inside=path.parent)
    try:
        found = load_file(path)
        strange = [name for name, tensor in found.items() if not _finite(tensor)]
    except (SafetensorError, RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise UnreadableError(f"is not a whole safetensors file ({reason_of(error)})") from None
    if strange:
        raise UnreadableError(f"holds numbers that are not finite, in {strange[0][:80]!r}")
    return found


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return not tensor.is_complex()
    if tensor.itemsize == 1:  # sums of 8-bit floats are not defined
        tensor = tensor.float()
    # A sum is one fast pass that allocates nothing; where it is not finite, a number is not, or all are very large.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
