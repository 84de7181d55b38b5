"""Names the code that a run of ours was made with. Knows nothing of what was run."""

from __future__ import annotations

import hashlib
from pathlib import Path

SUFFIXES = (".py", ".cpp", ".h")


def code_of(folder: Path) -> str:
    """A hash of all program text below `folder`, names included."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()


def package_code() -> str:
    """That of the package `smoothtune` as it is imported here."""
    import smoothtune

    return code_of(Path(smoothtune.__file__).parent)
