"""Every class of a room is exported, complete, and has a config and a test file of its own."""

import inspect
import re
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from lightning.pytorch import Callback
from torchmetrics import Metric

from prunelit.pruners import Pruner
from prunelit.tasks import Task
from prunelit.tasks.judges import Judge

from .walk import PACKAGE, classes, formats, unexported

ROOT = Path(__file__).parents[2]
BASES: dict[str, type[Any]] = {
    "callbacks": Callback,
    "metrics": Metric,
    "pruners": Pruner,
    "tasks": Task,
    "tasks.judges": Judge,
}
MEMBERS = [(room, member) for room, base in BASES.items() for member in classes(room, base)]
MEMBERS += [("tasks.formats", function) for function in formats()]

every_member = pytest.mark.parametrize(
    ("room", "member"), MEMBERS, ids=[f"{room}.{member.__name__}" for room, member in MEMBERS]
)

# What a config can name: each stands in at least one of the shipped configs.
IN_CONFIGS = [pair for pair in MEMBERS if pair[0] not in ("callbacks", "metrics")]
CONFIGS = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted((ROOT / "configs").rglob("*.yaml"))
)


def test_there_is_a_member_in_every_room() -> None:
    assert {room for room, _ in MEMBERS} == {*BASES, "tasks.formats"}


@every_member
def test_it_is_exported(room: str, member: type | FunctionType) -> None:
    sentence = unexported(room, member)
    assert sentence is None, sentence


def test_a_reader_of_the_root_sees_it_at_a_glance() -> None:
    rooms = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    files = [path.name for path in PACKAGE.glob("*.py")]
    assert len(rooms) <= 9, rooms
    assert len(files) <= 15, f"Move one of {sorted(files)} into a room."


@every_member
def test_it_is_complete(room: str, member: type | FunctionType) -> None:
    lacks = sorted(getattr(member, "__abstractmethods__", ()))
    assert not lacks, (
        f"`{member.__name__}` of {member.__module__} lacks {lacks}, which `{BASES[room].__name__}` "
        "asks for: define them."
    )


@every_member
def test_a_test_file_mirrors_its_module(room: str, member: type | FunctionType) -> None:
    module = Path(inspect.getfile(member)).relative_to(PACKAGE).with_suffix("")
    folder = ROOT / "tests" / module.parent
    found = [*folder.glob(f"test_{module.name}*.py"), *folder.glob(f"{module.name}/test_*.py")]
    assert found, f"Expected tests/{module.parent}/test_{module.name}.py, but there is none."


@pytest.mark.parametrize(
    ("room", "member"),
    IN_CONFIGS,
    ids=[f"{room}.{member.__name__}" for room, member in IN_CONFIGS],
)
def test_a_config_shows_it(room: str, member: type | FunctionType) -> None:
    path = f"prunelit.{room}.{member.__name__}"
    assert re.search(rf"{re.escape(path)}$", CONFIGS, flags=re.MULTILINE), (
        f"No file in configs/ names {path}: add one, as CONTRIBUTING.md says."
    )
