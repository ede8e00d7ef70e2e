"""Journals of an evaluation that was interrupted."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prunelit.core.resume import Journals, open_journals

RECIPE = {"model": "a", "prompts": ["é"]}
# Values that a conversion to decimal text would lose: NaN, -0, the smallest double, narrow types.
VALUES = {
    "double": torch.tensor([[0.1, float("nan")], [-0.0, 5e-324]], dtype=torch.float64),
    "single": torch.tensor([1 / 3, float("-inf")]),
    "half": torch.tensor([0.1, 2.0], dtype=torch.bfloat16),
    "tokens": torch.tensor([[[3, -1]], [[2**62, 0]]]),
    "ended": torch.tensor([True, False]),
}


def bits(value: Tensor) -> tuple[str, list[int], list[int]]:
    content = value.contiguous().flatten().view(torch.uint8).tolist()
    return str(value.dtype), list(value.shape), content


class Measuring:
    def __init__(self, values: dict[str, Tensor] | None = None) -> None:
        self.calls = 0
        self.given = values or VALUES

    def __call__(self) -> dict[str, Tensor]:
        self.calls += 1
        return self.given


def measured(folder: Path, indices: list[int], recipe: Any = RECIPE, rank: int = 0) -> bool:
    """Return True if a new start had to measure the batch."""
    journals = Journals(folder, rank)
    journals.open("task", recipe)
    measure = Measuring()
    found = journals.values("task", torch.tensor(indices), measure)
    assert {name: bits(value) for name, value in found.items()} == {
        name: bits(value) for name, value in VALUES.items()
    }
    return measure.calls == 1


def test_a_batch_is_measured_once_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    assert measured(tmp_path, [4, 2])
    assert not measured(tmp_path, [4, 2])


def test_another_batch_recipe_or_task_is_measured(tmp_path: Path) -> None:
    assert measured(tmp_path, [4, 2])
    assert measured(tmp_path, [2, 4])
    assert measured(tmp_path, [4])
    assert measured(tmp_path, [4, 2], RECIPE | {"model": "b"})
    journals = Journals(tmp_path, 0)
    assert journals.open("tas", RECIPE) == 0
    assert journals.open("task", RECIPE) == 3


def test_ranks_read_what_any_rank_measured(tmp_path: Path) -> None:
    assert measured(tmp_path, [0, 1], rank=0)
    assert measured(tmp_path, [2, 3], rank=1)
    assert len(list(tmp_path.iterdir())) == 2
    for rank in range(3):
        assert not measured(tmp_path, [0, 1], rank=rank)
        assert not measured(tmp_path, [2, 3], rank=rank)


def test_every_cut_of_the_file_is_survived(tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    for first in (0, 2, 4):
        measured(folder, [first, first + 1])
    (path,) = folder.iterdir()
    content = path.read_bytes()
    lines = content.split(b"\n")
    ends = [len(b"\n".join(lines[: n + 2])) for n in range(3)]
    for cut in range(0, len(content), 97):
        other = tmp_path / str(cut)
        other.mkdir()
        (other / path.name).write_bytes(content[:cut])
        journals = Journals(other, 0)
        known = sum(cut >= end for end in ends)
        assert journals.open("task", RECIPE) == known
        for first in (0, 2, 4):
            journals.values("task", torch.tensor([first, first + 1]), Measuring())
        assert Journals(other, 0).open("task", RECIPE) == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"items": [2', b'"items": [9'),  # the values of other items
        (b"AAAA", b"AAAB"),
        (b'"shape": [2, 2]', b'"shape": [4, 1]'),
        (b'{"items"', b'{"other"'),
        (b'{"items"', b"null"),
        (b"values", b"v\xff\xfees"),
    ],
)
def test_a_damaged_batch_is_measured_again_with_a_sentence(
    old: bytes, new: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for first in (0, 2, 4):
        measured(tmp_path, [first, first + 1])
    (path,) = tmp_path.iterdir()
    lines = path.read_bytes().split(b"\n")
    assert old in lines[2]
    lines[2] = lines[2].replace(old, new, 1)
    path.write_bytes(b"\n".join(lines))
    with caplog.at_level("INFO"):
        assert measured(tmp_path, [2, 3])
    assert f"1 of 3 batches in {path} are damaged or cut off" in caplog.text
    assert not measured(tmp_path, [0, 1])
    assert not measured(tmp_path, [4, 5])


def test_a_line_of_another_recipe_is_not_taken(tmp_path: Path) -> None:
    for folder, model in (("a", "a"), ("b", "b")):
        measured(tmp_path / folder, [0], RECIPE | {"model": model})
    (one,), (other,) = ((tmp_path / folder).iterdir() for folder in "ab")
    head, forged = one.read_bytes().split(b"\n")[0], other.read_bytes().split(b"\n")[1]
    one.write_bytes(head + b"\n" + forged)
    assert measured(tmp_path / "a", [0], RECIPE | {"model": "a"})


def test_a_file_of_another_recipe_under_this_name_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured(tmp_path, [0])
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text(encoding="utf-8").replace('"a"', '"b"'), encoding="utf-8")
    with caplog.at_level("INFO"):
        assert measured(tmp_path, [0])
    assert f"The first line of {path} is damaged" in caplog.text


def test_a_rank_reads_what_another_one_writes_for_both(tmp_path: Path) -> None:
    for writes in (False, True, False):
        journals = Journals(tmp_path, 1, writes=writes)
        journals.open("task", RECIPE)
        journals.values("task", torch.tensor([0]), measure := Measuring())
        assert len([*tmp_path.iterdir()]) == 1 or not writes
    assert measure.calls == 0


def test_what_is_finished_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "unfinished"
    measured(folder, [0], rank=0)
    measured(folder, [1], rank=1)
    other = Journals(folder, 0)
    other.open("other", {})
    other.values("other", torch.tensor([0]), Measuring())
    second = Journals(folder, 1)
    second.open("task", RECIPE)
    second.remove()
    assert len(list(folder.iterdir())) == 3
    first = Journals(folder, 0)
    first.open("task", RECIPE)
    first.remove()
    assert [path.name.split("-")[0] for path in folder.iterdir()] == ["other"]
    other.remove()
    assert not folder.exists()
    other.remove()


def test_a_task_that_was_not_opened_leaves_nothing(tmp_path: Path) -> None:
    measure = Measuring()
    journals = Journals(tmp_path, 0)
    for _ in range(2):
        journals.values("task", torch.tensor([0]), measure)
    assert measure.calls == 2
    assert not any(tmp_path.iterdir())


def test_values_that_cannot_be_written_down_are_an_error(tmp_path: Path) -> None:
    journals = Journals(tmp_path, 0)
    journals.open("task", RECIPE)
    with pytest.raises(AssertionError, match="only tensors"):
        journals.values("task", torch.tensor([0]), lambda: {"sketch": object()})


def test_files_of_other_settings_are_named_with_what_differs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert measured(tmp_path, [0], RECIPE | {"batch_size": 2})
    other = Journals(tmp_path, 0)
    other.open("gone", RECIPE)
    other.values("gone", torch.tensor([0]), Measuring())
    other.open("a-b", RECIPE | {"batch_size": 2})
    other.values("a-b", torch.tensor([0]), Measuring())
    (damaged,) = tmp_path.glob("a-b-*")
    damaged.write_bytes(b"x" + damaged.read_bytes())
    (tmp_path / "note.txt").touch()
    assert measured(tmp_path, [0], RECIPE | {"batch_size": 4})
    before = sorted(tmp_path.iterdir())
    journals = Journals(tmp_path, 0)
    for task in ("task", "a-b"):
        journals.open(task, RECIPE | {"batch_size": 4})
    caplog.clear()
    with caplog.at_level("INFO"):
        journals.tell_others()
    (damage, gone, told) = caplog.messages
    (path,) = [path for path in tmp_path.glob("task-*") if str(path) in told]
    assert told == (
        f"{path} holds batches that were measured with other settings (batch_size: 4 now, 2 "
        "there), and this run does not use it: a run with those settings continues from it, or "
        "remove it."
    )
    assert "(this run measures no batches of 'gone' that could be continued)" in gone
    assert "(its first line is damaged)" in damage
    assert sorted(tmp_path.iterdir()) == before


class Own:
    """A task of a user."""

    twin = None

    def recipe(self) -> dict[str, Any]:
        return RECIPE


def test_the_version_of_prunelit_and_a_users_code_are_part_of_the_recipe(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(
        default_root_dir=tmp_path,
        global_rank=0,
        state=SimpleNamespace(fn="validate"),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        precision="32-true",
    )
    pair: Any = SimpleNamespace(models=dict)
    tasks: Any = {"task": Own()}
    open_journals(trainer, pair, tasks).values("task", torch.tensor([0]), Measuring())
    (path,) = (tmp_path / "unfinished").iterdir()
    recipe = json.loads(path.read_bytes().split(b"\n")[0])["recipe"]
    assert recipe["versions"]["prunelit"] == version("prunelit")
    mine = hashlib.sha256(Path(__file__).read_bytes()).digest()
    assert recipe["code_sha256"] == hashlib.sha256(mine).hexdigest()
