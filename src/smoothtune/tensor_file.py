"""Writing safetensors files. Knows nothing of what the tensors are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write `tensors` by name, brought to the CPU, with the umask's rights. Raises `OSError` for what the disk refuses."""
    held = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    path.touch()  # with the umask's rights; the library gives its file the owner's alone
    rights = path.stat().st_mode & 0o777
    try:
        save_file(held, path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:  # the library has one error for everything, and tells the system's in its text
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number), str(path)) from None
    path.chmod(rights)
