"""Turns pydantic's validation errors into problems with key paths and near names. Knows nothing of files."""

from __future__ import annotations

import difflib
import re
import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from smoothtune.errors import Problem

_TAG = "kind"
_TOML = {"tuple_type": "a list", "dict_type": "a table", "model_type": "a table", "model_attributes_type": "a table"}


def near(name: str, names: typing.Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing when no name is near: "range" is no "train" mistyped."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.65)
    return f" Did you mean {found[0]!r}?" if found else ""


def problems_of(error: ValidationError, root: type[BaseModel]) -> list[Problem]:
    """One problem per key, in the order of the file."""
    found: dict[str, Problem] = {}
    mistyped: set[str] = set()  # of a number or text the branch of the right type says what is wrong
    for item in error.errors():
        problem = _problem(item, root)
        if _is_echo(item) or problem.where.endswith("schedule_options.kind"):
            continue
        if problem.where not in found or (problem.where in mistyped and not item["type"].endswith("_type")):
            found[problem.where] = problem
        if item["type"].endswith("_type"):
            mistyped.add(problem.where)
    return list(found.values())


def _is_echo(item: Any) -> bool:
    """Whether a list is called too short only because its wrong entries, reported themselves, were not counted."""
    return bool(item["type"] == "too_short" and len(item["input"]) != item["ctx"]["actual_length"])


def _problem(item: Any, root: type[BaseModel]) -> Problem:
    path, classes = _walk(item["loc"], root)
    kind, context, got = item["type"], item.get("ctx", {}), item.get("input")
    if kind == "extra_forbidden":
        set_elsewhere = {_TAG} if ".schedule_options." in path else set()  # `schedule` says it
        fields = sorted({key for cls in classes for key in _keys(cls)} - set_elsewhere)
        known = f" Known keys: {', '.join(fields)}." if fields else " There are none to set here; remove it."
        return Problem(path, f"unknown key.{near(str(item['loc'][-1])[:80], fields) or known}")
    if kind == "missing":
        return Problem(path, "is required but missing")
    if kind == "union_tag_not_found":
        expected = context.get("discriminator", "'kind'").strip("'")
        return Problem(f"{path}.{expected}", f"is required but missing; one of {_tags(classes)}")
    if kind == "union_tag_invalid":
        tag = str(context["tag"])
        hint = near(tag[:80], _kinds(classes))
        return Problem(f"{path}.{_TAG}", f"got {_short(tag)}, expected one of {_tags(classes)}.{hint}")
    if kind in _TOML:
        return Problem(path, f"must be {_TOML[kind]}, got {_short(got)}")
    message = item["msg"].removeprefix("Value error, ")
    if kind == "literal_error":
        choices = [choice.strip("' ") for choice in context["expected"].replace(" or ", ", ").split(",")]
        return Problem(path, f"got {_short(got)}, expected one of {', '.join(choices)}.{near(str(got)[:80], choices)}")
    return Problem(path, f"{message[:1].lower()}{message[1:]}, got {_short(got)}" if kind != "value_error" else message)


def _keys(cls: type[BaseModel]) -> list[str]:
    """The keys of a table as a file names them."""
    return [name if field.alias is None else field.alias for name, field in cls.model_fields.items()]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _key(step: int | str) -> str:
    """A key as it stands in a path; in quotes where it could pass for something else in a message."""
    text = str(step)
    return text if text.isprintable() and len(text) <= 80 else _short(text)


def _kinds(classes: list[type[BaseModel]]) -> list[str]:
    return [str(typing.get_args(cls.model_fields[_TAG].annotation)[0]) for cls in classes if _TAG in cls.model_fields]


def _tags(classes: list[type[BaseModel]]) -> str:
    return ", ".join(_kinds(classes))


def _walk(location: tuple[Any, ...], root: type[BaseModel]) -> tuple[str, list[type[BaseModel]]]:
    """The key path of a pydantic location without its union tags, and the option classes met at its end.

    For an unknown key the classes are those of the table that holds it.
    """
    path, classes = "", [root]
    annotation: Any = root
    for step in location:
        if len(classes) > 1 and not _holds(annotation) and step in _kinds(classes):
            classes = [cls for cls in classes if step in _kinds([cls])]
            continue
        if isinstance(step, str) and re.match(r"(constrained-|function-|tuple\[|list\[|float$|int$|str$|bool$)", step):
            continue  # a branch of a plain union, no key of the file
        path = f"{path}.{_key(step)}" if path else _key(step)
        fields = [cls.model_fields[step] for cls in classes if isinstance(step, str) and step in cls.model_fields]
        annotation = fields[0].annotation if fields and not _holds(annotation) else _inner(annotation)
        classes = _models(annotation) or classes
    return path, classes


def _holds(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (dict, tuple, list)


def _inner(annotation: Any) -> Any:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is dict:
        return arguments[1]
    return arguments[0] if _holds(annotation) else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    origin = typing.get_origin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if origin is typing.Annotated:
        return _models(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType, dict, tuple, list):
        return [model for part in typing.get_args(annotation) for model in _models(part)]
    return []
