"""The base of every table of options. Knows nothing of what the options mean."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, StringConstraints
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$", max_length=60)]


def _whole(value: Any) -> Any:
    return _numeric(value, "int_type")


def _number(value: Any) -> Any:
    return _numeric(value, "float_type")


def _numeric(value: Any, error: Literal["int_type", "float_type"]) -> Any:
    if isinstance(value, bool | str | bytes):
        raise PydanticKnownError(error)
    return value


_CHECKS = [{"type": "no-info", "function": check} for check in (_whole, _number)]


def _strict(schema: Any) -> Any:
    """The same core schema, in which every number and truth value is taken for what it is alone."""
    if isinstance(schema, list | tuple):
        return type(schema)(map(_strict, schema))
    if not isinstance(schema, dict) or schema.get("function") in _CHECKS:
        return schema
    if schema.get("type") == "bool":
        return {**schema, "strict": True}
    if schema.get("type") in ("int", "float"):
        check = _whole if schema["type"] == "int" else _number
        return core_schema.no_info_before_validator_function(check, schema)  # type: ignore[arg-type]
    return {key: _strict(value) for key, value in schema.items()}


class Options(BaseModel):
    """Frozen, and strict about unknown keys, and about what is no number or truth value where one is asked for.

    A whole number is a fraction too, and 1e3 a whole number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        strict: CoreSchema = _strict(handler(source))
        return strict
