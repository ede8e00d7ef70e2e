"""Batches by rank."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunelit import InputError
from prunelit.tasks import ItemTable, ModelPair, Task, TaskReport


class Doubling(Task):
    """Item i measures 2i."""

    def read(self) -> None: ...

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> int:
        return 0

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        return {"double": 2 * torch.tensor(indices)}

    def step(self, pair: ModelPair, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"double": batch["double"]}

    def report(self, table: ItemTable) -> TaskReport:
        return TaskReport([])


def dealt(task: Task, size: int, world: int) -> list[list[list[int]]]:
    """The item numbers of each batch of each rank."""
    return [
        [batch["indices"].tolist() for batch in task.batches(size, rank, world)]
        for rank in range(world)
    ]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 3, 4, 7, 12, 13])
def test_every_item_is_dealt_once_and_ranks_have_equal_numbers_of_batches(
    size: int, world: int
) -> None:
    ranks = dealt(Doubling("doubling", batch_size=3), size, world)
    items = [item for batches in ranks for batch in batches for item in batch]
    assert sorted(items) == list(range(size))
    assert len({len(batches) for batches in ranks}) == 1


@pytest.mark.parametrize("world", [2, 3, 5])
def test_batches_do_not_depend_on_the_number_of_ranks(world: int) -> None:
    task = Doubling("doubling", batch_size=3)
    alone = dealt(task, 13, 1)[0]
    together = [batch for batches in dealt(task, 13, world) for batch in batches if batch]
    assert sorted(together) == alone == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12]]


def test_a_rank_with_one_batch_fewer_gets_an_empty_one() -> None:
    task = Doubling("doubling", batch_size=3)
    assert dealt(task, 7, 2) == [[[0, 1, 2], [6]], [[3, 4, 5], []]]
    assert dealt(task, 2, 3) == [[[0, 1]], [[]], [[]]]
    empty = next(iter(task.batches(2, 1, 3)))
    assert list(empty) == ["indices"]
    assert empty["indices"].dtype == torch.int64


def test_a_batch_is_collated_and_numbered() -> None:
    batches = Doubling("doubling", batch_size=2).batches(3, 0, 1)
    assert len(batches) == 2
    assert [batch["double"].tolist() for batch in batches] == [[0, 2], [4]]
    # A second pass over the same object gives the same batches.
    assert [batch["indices"].tolist() for batch in batches] == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "Expected a non-empty task name without '/' but got ''"),
        ("a/b", "Expected a non-empty task name without '/' but got 'a/b'"),
        ("..", "without '/' but got '..': give a `name` that can name a file"),
        ("a\nb", r"of printable characters but got 'a\\nb': give a `name` without line breaks"),
        ("a\udcff", "of printable characters but got"),
        ("é" * 76, "at most 150 bytes, as it names files, but got 'é*' with 152 bytes: give"),
    ],
    ids=range(6),
)
def test_a_name_that_cannot_name_a_file_is_refused(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Doubling(name, 1)


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="`batch_size` of at least 1 but got 0"):
        Doubling("doubling", 0)
