"""Public classes and functions with wrong arguments: `InputError`, or what a call itself says.

The metrics have tests of their own.
"""

import importlib
import inspect
import json
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from prunelit import InputError, PruneTrainer, prune
from prunelit.pruners import Magnitude, Pruner
from prunelit.schedule import Schedule
from prunelit.sparsity import Sparsity, Unstructured
from prunelit.tasks import Task
from prunelit.tasks.formats.base import read_examples, read_questions
from prunelit.tasks.judges import Judge
from prunelit.tasks.questions import Question

from ..contracts.walk import formats

ROOMS = ["", "allocation", "callbacks", "data", "pruners", "pruning", "schedule", "sparsity"]
ROOMS += ["tasks", "tasks.judges"]
WRONG = [
    *(None, "", "text", Path("nowhere"), -1, 0, 2**70, 0.5, math.nan, True, [], [None], {}),
    *(["text"], {"a": 1}, b"bytes", object()),
]
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
DRAWN = 4  # wrong values for an argument


def public(room: str) -> dict[str, Any]:
    module: ModuleType = importlib.import_module(f"prunelit.{room}".rstrip("."))
    return {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}


CALLED = {
    name: member
    for room in ROOMS
    for name, member in public(room).items()
    if (inspect.isfunction(member) or inspect.isclass(member))
    and not inspect.isabstract(member)
    and not (inspect.isclass(member) and issubclass(member, Exception | Trainer))
}


def arguments_of(called: Any) -> dict[str, inspect.Parameter]:
    """Return the arguments of a call, those that a class passes on to its bases included."""
    found: dict[str, inspect.Parameter] = {}
    for base in called.__mro__ if inspect.isclass(called) else [called]:
        function = vars(base).get("__init__") if inspect.isclass(called) else base
        if not inspect.isfunction(function):
            continue
        parameters = inspect.signature(function).parameters
        for name, parameter in parameters.items():
            if name != "self" and parameter.kind not in VARIADIC:
                found.setdefault(name, parameter)
        if not any(parameter.kind in VARIADIC for parameter in parameters.values()):
            break
    return found


class Right:
    """Draw values that fit an argument."""

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        self.by_name = {
            "path": "prunelit:facts.jsonl",
            "source": str(folder),
            "column": "context",
            "columns": ["id"],
            "split": "train",
            "first": "context",
            "second": "context",
            "score": "label",
            "model": model,
            "dense": model,
            "pruned": model,
            "tokenizer": tokenizer,
            "pruner": Magnitude(Unstructured(0.5)),
            "sparsity": Unstructured(0.5),
            "ratio": 0.5,
            "keep": 2,
            "group": 4,
            "length": 8,
            "limit": 2,
            "calibration": None,
            "monitor": "val/a/b",
            "dirpath": "checkpoints",
            "kind": "mlp",
            "text": "text",
            "folder": folder.parent / "new",
            "report": prune(model, Magnitude(Unstructured(0.5)), progress=False),
            "linear": model.lm_head,
            "results": [],
        }

    def value(self, name: str) -> Any:
        return self.by_name.get(name, 2)


def use(made: Any, make_model: Callable[..., Any], tokenizer: Any) -> None:
    """Do what a run does first with an object."""
    if isinstance(made, Task):
        made.read()
        made.prepare(tokenizer)
    elif isinstance(made, Pruner):
        prune(make_model("llama"), made, torch.ones(2, 8, dtype=torch.int64), progress=False)
    elif isinstance(made, Sparsity):
        made.keep_mask(torch.rand(4, 8))
    elif isinstance(made, Schedule):
        made.fraction(0)
        made.due(0, 0)
    elif isinstance(made, Judge):
        made.check()
        made.details()


@pytest.mark.parametrize("name", CALLED)
def test_wrong_arguments(
    name: str, make_model: Callable[..., Any], tokenizer: Any, material: Path
) -> None:
    called, random = CALLED[name], Random(name)
    parameters = arguments_of(called)
    right = Right(make_model("llama"), tokenizer, material / "dense")
    needed = {n: right.value(n) for n, p in parameters.items() if p.default is p.empty}
    complaints = []
    for argument in parameters:
        for wrong in random.sample(WRONG, DRAWN):
            given = {**needed, argument: wrong}
            try:
                use(called(**given), make_model, tokenizer)
            except InputError:
                continue
            except Exception as error:  # noqa: BLE001 - each other one is a complaint
                frames = traceback.extract_tb(error.__traceback__)
                if isinstance(error, TypeError) and "keyword argument" in str(error):
                    continue  # of the call itself
                last = frames[-1]
                place = f"{Path(last.filename).name}:{last.lineno}"
                complaints.append(
                    f"{argument}={wrong!r:.30}: {type(error).__name__} {error} {place}"
                )
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("format", formats(), ids=lambda format: format.__name__)
def test_rows_of_another_form(format: Any, tmp_path: Path) -> None:
    random, path = Random(format.__name__), tmp_path / "rows.jsonl"
    plain = [value for value in WRONG if isinstance(value, str | float | int | list | dict | None)]
    values = [*plain, "A", "text #### 5", ["a", "b"], {"text": ["a", "b"], "label": ["A", "B"]}]
    questions = inspect.signature(format).return_annotation is Question
    read = read_questions if questions else read_examples
    for _ in range(20):
        row = {column: random.choice(values) for column in format.columns}
        path.write_text(json.dumps(row) + "\n")
        try:
            (one,) = read(str(path), "train", format=format)
        except InputError:
            continue
        assert isinstance(one.context, str)
        assert isinstance(one.target, str)


@pytest.mark.parametrize("run", ["fit", "validate", "sweep"])
def test_runs_of_something_else(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = PruneTrainer(accelerator="cpu", max_epochs=0, logger=False)
    arguments: dict[str, Any] = {"model": None, "datamodule": None, "ckpt_path": None}
    arguments |= {"variants": {}} if run == "sweep" else {}
    for name in arguments.keys() & inspect.signature(getattr(trainer, run)).parameters.keys():
        for wrong in WRONG:
            if wrong is None and name != "model":
                continue
            given = {"model": torch.nn.Linear(1, 1), **({"variants": {}} if run == "sweep" else {})}
            with pytest.raises(InputError):
                getattr(trainer, run)(**{**given, name: wrong})
    assert not list(tmp_path.iterdir())
