"""The walls between the rooms, the registry, and what importing may load."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import smoothtune
from smoothtune.config.catalogue import catalogue
from smoothtune.config.encoder import EncoderOptions
from smoothtune.config.regularisers import RegulariserOptions
from smoothtune.config.schedules import ScheduleName, ScheduleOptions
from smoothtune.config.stage import WeightingName
from smoothtune.config.trunks import TrunkOptions
from smoothtune.registry import TABLE, resolve
from tests.golden import check_golden

SOURCE = Path(smoothtune.__file__).parent
GROUND = ("terminal_text", "errors", "types", "registry", "system", "files", "bounded", "tensor_file", "cache")
ORDER = (*GROUND, "config", "runtime", "data", "nn", "objective", "training", "evaluation", "robustness", "inference")
ORDER += ("workflow", "studies", "smoothness", "integrations", "cli")
STRANGERS = (("data", "nn"), ("nn", "data"), ("training", "evaluation"), ("evaluation", "training"))
STRANGERS += (("objective", "nn"), ("objective", "data"))
WIRING = {"workflow", "studies", "integrations"}
PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FILES = sorted(SOURCE.rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def room_of(path: Path) -> str:
    """The room of a file; "" for the package's own two files."""
    first = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "" if first in ("__init__", "__main__") else first


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported anywhere in the file; relative imports made absolute."""
    package = ("smoothtune", *path.relative_to(SOURCE).parent.parts)
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def rooms_seen(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import of ours; "" for the package itself."""
    for line, name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "smoothtune":
            yield line, parts[1] if len(parts) > 1 and parts[1] in ORDER else ""


def test_every_module_is_looked_at_and_stands_in_a_known_room() -> None:
    assert len(FILES) > 60
    assert {room_of(path) for path in FILES} - {""} <= set(ORDER)
    assert sum(1 for path in FILES for _ in rooms_seen(path)) > 150


def test_a_room_imports_only_rooms_above_it() -> None:
    wrong = []
    for path in FILES:
        room = room_of(path)
        for line, other in rooms_seen(path) if room else ():
            facade = other == "" and room not in ("cli", "integrations")
            if facade or (other and other != room and ORDER.index(other) > ORDER.index(room)):
                wrong.append(f"{path.relative_to(SOURCE)}:{line}: {room} imports {other or 'the package itself'}")
    assert wrong == []


@pytest.mark.parametrize(("room", "other"), STRANGERS)
def test_these_rooms_do_not_know_each_other(room: str, other: str) -> None:
    wrong = [
        f"{path.relative_to(SOURCE)}:{line}"
        for path in FILES
        if room_of(path) == room
        for line, seen in rooms_seen(path)
        if seen == other
    ]
    assert wrong == []


def test_the_ground_floor_imports_nothing_of_ours_but_what_stands_lower_on_it() -> None:
    seen = {room: {other for _, other in rooms_seen(SOURCE / f"{room}.py")} for room in GROUND}
    assert seen == {
        "terminal_text": set(),
        "errors": {"terminal_text"},
        "types": set(),
        "registry": set(),
        "system": {"errors"},
        "files": {"errors", "system"},
        "bounded": {"system"},
        "tensor_file": set(),
        "cache": {"bounded", "files"},
    }


def test_only_wiring_rooms_see_both_training_and_evaluation() -> None:
    seen: dict[str, set[str]] = {}
    for path in FILES:
        seen.setdefault(room_of(path), set()).update(other for _, other in rooms_seen(path))
    assert {room for room, others in seen.items() if {"training", "evaluation"} <= others} <= WIRING


def test_every_module_says_what_it_is() -> None:
    assert [str(path) for path in FILES if not (ast.get_docstring(tree_of(path)) or "").strip()] == []


def test_no_module_is_a_drawer_for_leftovers() -> None:
    drawers = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert [str(path) for path in FILES if drawers & set(path.relative_to(SOURCE).with_suffix("").parts)] == []


def test_nothing_pickles() -> None:
    wrong = [f"{path}:{line}: {name}" for path in FILES for line, name in imports_of(path) if _pickles(name)]
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and f"{getattr(node.value, 'id', '')}.{node.attr}" in (
                "torch.load",
                "torch.save",
            ):
                wrong.append(f"{path}:{node.lineno}: torch.{node.attr}")
            if isinstance(node, ast.Attribute) and node.attr in ("save_state", "load_state", "from_pickle"):
                wrong.append(f"{path}:{node.lineno}: {node.attr}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and getattr(node.value, "value", 1):
                wrong.append(f"{path}:{node.value.lineno}: allow_pickle")
    assert wrong == []


def _pickles(name: str) -> bool:
    return name.split(".")[0] in PICKLING or name in ("torch.load", "torch.save", "torch.serialization.load")


def test_the_package_the_configuration_and_the_program_load_no_torch() -> None:
    config = [f"smoothtune.config.{path.stem}" for path in sorted((SOURCE / "config").glob("*.py"))]
    assert len(config) > 10
    names = ["smoothtune", "smoothtune.errors", "smoothtune.types", "smoothtune.registry", *config]
    names = [name.removesuffix(".__init__") for name in names] + ["smoothtune.cli.main"]
    program = (
        "import importlib, json, sys\nheavy = {}\n"
        f"for name in {names!r}:\n    importlib.import_module(name)\n"
        "    heavy[name] = [m for m in ('torch', 'transformers', 'datasets', 'sklearn', 'numpy') if m in sys.modules]\n"
        "print(json.dumps(heavy))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == {name: [] for name in names}


def test_the_public_names_are_these_and_all_of_them_are_there() -> None:
    check_golden("public.txt", "".join(f"{name}\n" for name in sorted(smoothtune.__all__)))
    for name in smoothtune.__all__:
        assert getattr(smoothtune, name) is not None
    with pytest.raises(AttributeError, match=r"^module 'smoothtune' has no attribute 'trian'$"):
        _ = smoothtune.trian


def _kinds(union: object) -> list[str]:
    classes = typing.get_args(typing.get_args(union)[0])
    return [typing.get_args(cls.model_fields["kind"].annotation)[0] for cls in classes]


def test_every_entry_of_the_registry_resolves_to_something_that_can_be_called() -> None:
    entries = [(table, kind) for table, kinds in TABLE.items() for kind in kinds]
    assert len(entries) >= 21
    for table, kind in entries:
        found = resolve(table, kind)
        assert callable(found), f"{table}.{kind}"
        assert found.__module__ == TABLE[table][kind].partition(":")[0], f"{table}.{kind} is defined elsewhere"
    assert len({target for kinds in TABLE.values() for target in kinds.values()}) == len(entries)


def test_the_registry_the_option_classes_and_the_catalogue_name_the_same() -> None:
    implementations = set(typing.get_args(EncoderOptions.model_fields["implementation"].annotation))
    outputs = {cls.output for cls in typing.get_args(typing.get_args(TrunkOptions)[0])}
    found = catalogue()
    assert list(TABLE["trunks"]) == _kinds(TrunkOptions) == list(found["trunks"])
    assert list(TABLE["schedules"]) == _kinds(ScheduleOptions) == list(found["schedules"])
    assert list(typing.get_args(ScheduleName)) == _kinds(ScheduleOptions)
    assert list(TABLE["regularisers"]) == _kinds(RegulariserOptions) == list(found["regularisers"])
    assert list(TABLE["weightings"]) == list(typing.get_args(WeightingName)) == list(found["weightings"])
    assert set(TABLE["outputs"]) == outputs == set(found["outputs"])
    assert set(TABLE["encoders"]) == implementations - {"auto"}
    assert all(meaning.strip() for table in found.values() for meaning in table.values())


def test_the_names_of_the_registry_are_those_of_the_golden_file() -> None:
    lines = [f"{table}.{kind}" for table, kinds in TABLE.items() for kind in kinds]
    check_golden("registry.txt", "".join(f"{line}\n" for line in lines))


def test_an_unknown_kind_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="maen"):
        resolve("trunks", "maen")
