"""Downloads of checkpoints from the Hugging Face Hub. Knows nothing of what is in them."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is of httpx or httpx2, as the client uses
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from smoothtune.errors import ModelFileError

_WANTED = [
    "config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
    "special_tokens_map.json",
]
_ADVICE: tuple[tuple[type[Exception], str], ...] = (
    (GatedRepoError, "its owner asks readers to accept terms; accept them on its page and log in with `hf auth login`"),
    (
        RepositoryNotFoundError,
        "there is no such model, or it is private; check the spelling, or log in with `hf auth login`",
    ),
    (RevisionNotFoundError, "it has no such revision; correct or remove encoder.revision"),
    (HFValidationError, "this is neither a folder nor a possible Hugging Face id; correct encoder.name"),
    (
        LocalEntryNotFoundError,
        "the Hub cannot be reached (or HF_HUB_OFFLINE is set) and the cache holds no complete copy; connect once, "
        "or give the path of a folder that holds the checkpoint",
    ),
    (HTTPError, "the download failed; try again, or give the path of a folder that holds the checkpoint"),
    (OSError, "the download could not be stored; check the free space and the rights of the Hugging Face cache"),
)


def download(name: str, revision: str | None) -> Path:
    """The folder of a checkpoint in the Hub's cache, downloaded if need be; pickled weights are left out.

    Raises `ModelFileError` with what to do when it cannot be had.
    """
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED))
    except tuple(kind for kind, _ in _ADVICE) as error:
        advice = next(advice for kind, advice in _ADVICE if isinstance(error, kind))
        raise ModelFileError(f"encoder.name: {name!r} cannot be had from the Hugging Face Hub: {advice}") from error
