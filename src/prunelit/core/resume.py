"""Resume an interrupted evaluation: measured batches are on disk, in journals.

A training resumes from its checkpoints, see `callbacks/checkpoints.py`.

Internal: a run with the same settings and the same folder resumes by itself.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from prunelit.core.environment import describe_environment
from prunelit.files import UNFINISHED, make_folder
from prunelit.models.model_pair import ModelPair
from prunelit.recipe import describe_code, tell_differences
from prunelit.tasks.base import Task

Values = Mapping[str, Any]


_NAME = re.compile(r"(?P<task>.+)-(?P<key>[0-9a-f]{16})-\d+\.jsonl")


class Journals:
    """One file per task and rank. Every measured batch is appended to it.

    The first line of a file is the recipe of its values; another recipe has another file. Values
    are read back bit for bit. An interrupted evaluation therefore ends with the same numbers as an
    uninterrupted one, on any number of ranks. Each further line begins with its checksum; a batch
    whose line is damaged or cut off is measured again.

    Args:
        folder: of the files; created with the first batch.
        rank: of this process.
        writes: append what this process measures; False if another one measures the same.
    """

    def __init__(self, folder: str | Path, rank: int, *, writes: bool = True) -> None:
        self._folder = Path(folder)
        self._rank = rank
        self._writes = writes
        self._recipes: dict[str, str] = {}
        self._keys: dict[str, str] = {}
        self._known: dict[str, dict[tuple[int, ...], str]] = {}

    def open(self, task: str, recipe: Mapping[str, Any]) -> int:
        """Read the batches of a task that an earlier run measured.

        Args:
            task: its name.
            recipe: plain data that the values depend on.

        Returns:
            The number of batches found.
        """
        self._recipes[task] = json.dumps({"recipe": recipe}, sort_keys=True)
        self._keys[task] = hashlib.sha256(self._recipes[task].encode()).hexdigest()[:16]
        self._known[task] = {}
        for path in self._files(task):
            head, *lines = path.read_bytes().split(b"\n")
            if head == self._recipes[task].encode():
                found = [self._read(task, line) for line in lines if line]
                if bad := found.count(None):
                    rank_zero_info(
                        f"{bad} of {len(found)} batches in {path} are damaged or cut off: they are "
                        "measured again."
                    )
                self._known[task] |= dict(filter(None, found))
                continue
            rank_zero_info(f"The first line of {path} is damaged: its batches are measured again.")
            if path.name.endswith(f"-{self._rank}.jsonl"):
                path.unlink()
        return len(self._known[task])

    def tell_others(self) -> None:
        """Say which files hold batches that were measured with other settings."""
        for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            name = _NAME.fullmatch(path.name)
            if name and name["key"] != self._keys.get(name["task"]):
                rank_zero_info(
                    f"{path} holds batches that were measured with other settings "
                    f"({self._difference(path, name['task'])}), and this run does not use it: a "
                    "run with those settings continues from it, or remove it."
                )

    def _difference(self, path: Path, task: str) -> str:
        if task not in self._recipes:
            return f"this run measures no batches of {task!r} that could be continued"
        with path.open("rb") as file:
            head = file.readline()
        try:
            other = json.loads(head)["recipe"]
        except (ValueError, TypeError, KeyError):
            return "its first line is damaged"
        mine = json.loads(self._recipes[task])["recipe"]
        return tell_differences(mine, other) or "its name was changed"

    def values(self, task: str, indices: Tensor, measure: Callable[[], Values]) -> Values:
        """Return the values of a batch: from the journal, or else measured and appended to it.

        Args:
            task: its name. Nothing is written for a task that was not opened.
            indices: (B,), the items of the batch.
            measure: returns one tensor per column.
        """
        if task not in self._known:
            return measure()
        items = tuple(indices.tolist())
        if items in self._known[task]:
            return _unpacked(self._known[task][items])
        values = measure()
        if not self._writes:
            return values
        line = json.dumps({"items": items, "values": _packed(values)})
        self._append(task, f"{self._checksum(task, line)} {line}")
        return values

    def remove(self) -> None:
        """Delete the files of the opened tasks, those of all ranks; only rank 0 deletes."""
        for task in self._known if self._rank == 0 else ():
            for path in self._files(task):
                path.unlink(missing_ok=True)
        if self._rank == 0 and self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _checksum(self, task: str, line: str) -> str:
        return hashlib.sha256(f"{self._keys[task]} {line}".encode()).hexdigest()[:16]

    def _read(self, task: str, content: bytes) -> tuple[tuple[int, ...], str] | None:
        """Read the items and the line of a batch; None if its checksum is another one."""
        checksum, _, line = content.decode(errors="replace").partition(" ")
        if checksum != self._checksum(task, line):
            return None
        return tuple(json.loads(line)["items"]), line

    def _files(self, task: str) -> list[Path]:
        begin = f"{task}-{self._keys[task]}-"
        if not self._folder.is_dir():
            return []
        return sorted(path for path in self._folder.iterdir() if path.name.startswith(begin))

    def _append(self, task: str, line: str) -> None:
        make_folder(self._folder)
        path = self._folder / f"{task}-{self._keys[task]}-{self._rank}.jsonl"
        with path.open("a+b") as file:
            # The last line of a killed run may be incomplete.
            begin = "\n" if file.tell() else f"{self._recipes[task]}\n"
            file.write(f"{begin}{line}".encode())


def open_journals(
    trainer: Trainer, pair: ModelPair, tasks: Mapping[str, Task], *, writes: bool = True
) -> Journals:
    """Open the journals of a validation, in `unfinished` below the Trainer's root folder.

    Validations during training have none, since their weights change.

    Args:
        trainer: that validates.
        pair: the models, on their device.
        tasks: tasks with a recipe get a journal.
        writes: see `Journals`.
    """
    folder = Path(trainer.default_root_dir) / UNFINISHED
    journals = Journals(folder, trainer.global_rank, writes=writes)
    recipes = {name: recipe_of(task) for name, task in tasks.items()}
    if trainer.state.fn != "validate":
        return journals
    if not any(recipes.values()):
        journals.tell_others()
        return journals
    run = {
        "models": {name: pair.fingerprint(name) for name in pair.models()},
        **describe_environment(trainer),
    }
    for name, model in pair.models().items():
        run |= {f"{name}_{key}": value for key, value in describe_code(type(model)).items()}
    for name, recipe in recipes.items():
        if recipe is None:
            continue
        if known := journals.open(name, {**run, **recipe, **describe_code(type(tasks[name]))}):
            rank_zero_info(f"The task {name!r} continues: {known} batches are measured already.")
    journals.tell_others()
    return journals


def recipe_of(task: Task) -> dict[str, Any] | None:
    """Return the recipe of a task, with that of its twin if the models have other tokenizers."""
    recipe = task.recipe()
    if recipe is None or task.twin is None:
        return recipe
    return {**recipe, "candidate": task.twin.recipe()}


def _packed(values: Values) -> dict[str, Any]:
    packed = {}
    for name, value in values.items():
        assert isinstance(value, Tensor), "a journal stores only tensors"
        value = value.detach().cpu().contiguous()
        content = value.flatten().view(torch.uint8).numpy().tobytes()
        packed[name] = {
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "content": base64.b64encode(content).decode("ascii"),
        }
    return packed


def _unpacked(line: str) -> dict[str, Tensor]:
    values = {}
    for name, packed in json.loads(line)["values"].items():
        content = bytearray(base64.b64decode(packed["content"]))
        dtype = getattr(torch, packed["dtype"])
        flat = torch.frombuffer(content, dtype=torch.uint8).view(dtype)
        values[name] = flat.view(packed["shape"])
    return values
