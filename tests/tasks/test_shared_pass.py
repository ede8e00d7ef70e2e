"""Tasks on the same windows share one pass of each model, and have the results of tasks alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.models.model_pair import ModelPair
from prunelit.tasks import Deviation, Distribution, ItemTable, Perplexity, Task
from prunelit.tasks.shared_pass import find_shared

KINDS = (Perplexity, Deviation, Distribution)


@pytest.fixture
def make(material: Path, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Task]:
    """`make(Perplexity, **options)` returns a prepared task of five windows in three batches."""

    def build(kind: type[Task], **options: Any) -> Task:
        given = {"length": 12, "limit": 5, "batch_size": 2, "name": kind.__name__, **options}
        task = kind(str(material / "text.jsonl"), **given)  # type: ignore[call-arg]
        task.read()
        task.prepare(tokenizer)
        return task

    return build


@pytest.fixture
def pair(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> ModelPair:
    return ModelPair(make_model("llama", seed=1), make_model("llama", seed=0), tokenizer)


@torch.no_grad()
def measure(tasks: list[Task], pair: ModelPair, shared: dict[str, Any]) -> list[str]:
    """Measure all tasks, one after the other, as an evaluation does."""
    rows = []
    for task in tasks:
        table = ItemTable(5)
        for batch in task.batches(5, 0, 1):
            one = shared.get(task.name)
            values = one.measure(task.name, pair, batch) if one else task.measure(pair, batch)
            table.assign(batch["indices"], values)
        rows += [repr(row) for row in task.report(table).results]
    return rows


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0)])
def test_one_pass_and_the_same_bits(
    order: tuple[int, ...], make: Callable[..., Task], pair: ModelPair
) -> None:
    tasks = [make(KINDS[number]) for number in order]
    for task in tasks:
        if isinstance(task, Distribution):
            task.floor = False
    alone = measure(tasks, pair, {})
    seen: list[int] = []
    for model in pair.models().values():
        model.base_model.register_forward_hook(lambda *_: seen.append(1))
    shared = find_shared(tasks)
    assert list(shared) == [task.name for task in tasks]
    assert measure(tasks, pair, shared) == alone
    assert len(seen) == 2 * 3
    assert all(not one._kept for one in shared.values())


def test_the_noise_floor_is_the_same(make: Callable[..., Task], pair: ModelPair) -> None:
    tasks = [make(Deviation), make(Distribution, floor_windows=3)]
    assert measure(tasks, pair, find_shared(tasks)) == measure(tasks, pair, {})


def test_two_ways_to_the_logit_space_are_two_passes(
    make: Callable[..., Task], pair: ModelPair
) -> None:
    tasks = [
        make(Distribution, floor=False),
        make(Deviation),
        make(Deviation, name="plain", logit_gram=False),
        make(Perplexity),
    ]
    shared = find_shared(tasks)
    assert "plain" not in shared
    assert shared["Distribution"] is shared["Deviation"] is shared["Perplexity"]
    assert measure(tasks, pair, shared) == measure(tasks, pair, {})


class Own(Deviation):
    """A task that measures in its own way."""

    def step(self, pair: ModelPair, batch: dict[str, Any]) -> Any:
        return super().step(pair, batch)


@pytest.mark.parametrize(
    ("kinds", "options"),
    [
        ((Deviation,), {}),
        ((Perplexity, Perplexity), {}),
        ((Own, Distribution), {}),
        ((Deviation, Distribution), {"batch_size": 3}),
        ((Deviation, Perplexity), {"length": 14}),
        ((Deviation, Perplexity), {"limit": 4}),
        ((Distribution, Deviation), {"temperature": 2.0}),
    ],
)
def test_other_tasks_share_nothing(
    kinds: tuple[type[Task], ...], options: dict[str, Any], make: Callable[..., Task]
) -> None:
    first, *others = kinds
    tasks = [make(first), *(make(kind, name="other", **options) for kind in others)]
    assert not find_shared(tasks)
