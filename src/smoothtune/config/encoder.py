"""Options of the shared encoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from smoothtune.config.options import Options
from smoothtune.types import SpecialTokens


class EncoderOptions(Options):
    """The shared encoder and how much text it reads."""

    name: str = Field("minilm", description="`minilm` (bundled), a checkpoint folder, or a Hugging Face id")
    revision: str | None = Field(None, description="commit or branch of a Hugging Face id")
    max_length: int = Field(
        128, ge=3, le=8192, description="tokens kept per text (joint: per pair), [CLS] and [SEP] included"
    )
    implementation: Literal["auto", "native", "transformers"] = Field(
        "auto",
        description="`native`: our BERT; `transformers`: AutoModel; `auto`: native wherever the checkpoint is a BERT",
    )
    special_tokens: SpecialTokens = Field(
        "text",
        description="what a special token that a text spells, such as [SEP], is; `text`: text; `tokens`: the token, as in "
        "runs before this key",
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="hidden dropout; default: the checkpoint's")
    attention_dropout: float | None = Field(
        None, ge=0, lt=1, description="attention dropout; default: the checkpoint's"
    )

    @field_validator("revision")
    @classmethod
    def _of_the_hub(cls, revision: str | None) -> str | None:
        if revision is not None and (".." in revision or revision.startswith("/")):
            raise ValueError(
                f"{revision[:80]!r} is no commit or branch; it would name a file outside of the Hub's cache"
            )
        return revision
