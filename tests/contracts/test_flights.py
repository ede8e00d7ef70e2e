"""Every task gives the same bits if its batches are measured together, block by block."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.core.datamodule import PruneData
from prunelit.core.evaluation import Evaluation
from prunelit.models.architecture import decoder_blocks
from prunelit.models.stores import Store, keep_in
from prunelit.tasks import Generation, ModelPair, MultipleChoice, Routing, Task, Transitions
from prunelit.trainer import PruneTrainer

from .small import ON_MIXTURES, TASKS, small_arguments, write_rows


class Away(Store):
    """Has NaN in the place of weights that are away, and counts how often they come."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.fetched = 0
        self._kept = {weight: weight.data for weight in block.parameters()}
        self.leave(edited=False)

    def fetch(self) -> None:
        self.fetched += 1
        for weight, data in self._kept.items():
            weight.data = data

    def leave(self, edited: bool) -> None:
        for weight, data in self._kept.items():
            weight.data = data.new_full((), torch.nan).expand(data.shape)


def every_task(rows: Path, cache: Path) -> list[Task]:
    """All tasks of a dense family; texts of some lengths, prompts with examples, shared passes."""
    tasks = []
    for task_class in (task for task in TASKS if task not in ON_MIXTURES):
        arguments: dict[str, Any] = {"name": task_class.__name__, "batch_size": 2}
        if "cache" in inspect.signature(task_class).parameters:
            arguments["cache"] = str(cache)
        tasks.append(task_class(**small_arguments(task_class, rows), **arguments))  # type: ignore[call-arg]
    small = small_arguments(Generation, rows) | {"max_new_tokens": 12}
    ends: dict[str, Any] = {"samples": 2, "temperature": 1.0, "stop": ["a", "e", "i", "("]}
    free: dict[str, Any] = {"unconditional": "Answer:", "tokens": 60}
    return [
        *tasks,
        Generation(name="ends", batch_size=1, **ends, **small),
        MultipleChoice(str(rows), name="free", batch_size=2, limit=7, **free),
        Transitions(str(rows), name="all", batch_size=3, limit=7, max_new_tokens=6, tokens=None),
    ]


def measured(
    pair: ModelPair, tasks: list[Task], trainer: PruneTrainer, flight: int | None, **options: Any
) -> Evaluation:
    data = PruneData(None, tasks)
    data.prepare(pair.tokenizer)
    with torch.inference_mode():
        for task in tasks:
            task.check(pair.dense or pair.pruned)
        evaluation = Evaluation(trainer, pair, data, **options)
        for name, task in data.tasks.items():
            batches = list(task.batches(data.sizes[name], 0, 1))
            if flight is None:
                for batch in batches:
                    evaluation.measure(name, batch)
            else:
                for start in range(0, len(batches), flight):
                    evaluation.measure_flight(name, batches[start : start + flight])
        evaluation.summarise(keep_going=False)
    return evaluation


def assert_equal(one: Evaluation, other: Evaluation) -> None:
    for name, table in one._tables.items():
        found = other._tables[name]
        assert found.columns() == table.columns()
        for column in table.columns():
            assert torch.equal(found[column].nan_to_num(7e7), table[column].nan_to_num(7e7)), column
    assert [repr(result) for result in one.results] == [repr(result) for result in other.results]
    assert one.results


def stored(model: PreTrainedModel) -> list[Away]:
    """Let all blocks of a model wait in stores."""
    stores = []
    for block in decoder_blocks(model)[1]:
        stores.append(Away(block))
        keep_in(block, stores[-1])
    return stores


@pytest.fixture
def make_pair(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> Callable[..., ModelPair]:
    def make(family: str, dtype: torch.dtype) -> ModelPair:
        pruned, dense = (make_model(family, seed=seed).to(dtype) for seed in (1, 0))
        return ModelPair(pruned, dense, tokenizer)

    return make


@pytest.mark.parametrize(
    ("name", "dtype", "part"),
    [
        ("llama", torch.float32, 0),
        ("gpt2", torch.bfloat16, 1),
        *(
            pytest.param(name, dtype, part, marks=pytest.mark.full)
            for name, dtype, part in (
                ("llama", torch.float32, 1),
                ("llama", torch.bfloat16, 0),
                ("gpt2", torch.bfloat16, 0),
                ("gpt2", torch.float32, 1),
            )
        ),
    ],
)
def test_a_flight_gives_the_same_bits(
    name: str,
    dtype: torch.dtype,
    part: int,
    make_pair: Callable[..., ModelPair],
    material: Path,
    tmp_path: Path,
) -> None:
    """Each half of the tasks, on two families and in two types."""
    rows = write_rows(tmp_path / "rows.jsonl", material)
    trainer = PruneTrainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    pair = make_pair(name, dtype)
    plain = measured(pair, every_task(rows, tmp_path / "a")[part::2], trainer, None)
    stores = [stored(model) for model in pair.models().values()]
    together = measured(pair, every_task(rows, tmp_path / "b")[part::2], trainer, 99)
    assert_equal(plain, together)
    assert all(store.fetched and not store._inside for own in stores for store in own)


def test_a_flight_over_a_mixture_gives_the_same_bits(
    make_pair: Callable[..., ModelPair], material: Path, tmp_path: Path
) -> None:
    rows = str(write_rows(tmp_path / "rows.jsonl", material))
    trainer = PruneTrainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    pair = make_pair("qwen3_moe", torch.float32)
    task = Routing(rows, batch_size=2, limit=5, max_new_tokens=4)
    plain = measured(pair, [task], trainer, None)
    stores = [stored(model) for model in pair.models().values()]
    assert_equal(plain, measured(pair, [task], trainer, 99))
    assert all(store.fetched and not store._inside for own in stores for store in own)
