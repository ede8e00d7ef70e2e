"""The base class of all tasks."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.arguments import Checked
from prunelit.errors import InputError, check_whole
from prunelit.models.model_pair import ModelPair
from prunelit.report.task_report import TaskReport
from prunelit.report.verdicts import Use
from prunelit.tasks.item_table import ItemTable, Streamed

_Own = TypeVar("_Own", bound="Task")
_LONGEST_NAME = 150  # bytes; files add their own words, and systems allow 255


class Task(Checked, ABC):
    """A measurement of the dense and the pruned model on the same items.

    A task turns its data into items, measures them batch by batch, and summarises them. It needs no
    code for several ranks: the batches do not depend on the number of ranks, each batch is measured
    by one rank, and `report` gets the table of all items.

    Args:
        name: name of the task, used in `val/<task>/<metric>`.
        batch_size: number of items per batch. The last bits of a logit depend on it.

    Example:
        >>> import torch
        >>> from prunelit.tasks import Task, TaskReport
        >>> class WeightNorm(Task):
        ...     '''Norm of each weight matrix: an item is a matrix.'''
        ...     def read(self):
        ...         pass
        ...     def prepare(self, tokenizer):
        ...         return 2
        ...     def collate(self, indices):
        ...         return {"number": torch.tensor(indices)}
        ...     def step(self, pair, batch):
        ...         norms = {}
        ...         for name, model in pair.models().items():
        ...             sizes = [w.norm() for w in model.parameters() if w.ndim == 2]
        ...             norms[f"{name}/norm"] = torch.stack(sizes)[batch["number"]]
        ...         return norms
        ...     def report(self, table):
        ...         return TaskReport(table.paired_results(self.name, ["norm"], {}))
        >>> task = WeightNorm("weight_norm", batch_size=1)
        >>> task.chunks(2)
        [[0], [1]]
    """

    # Use of the model that the main score measures; None if the report has no `scores`.
    use: Use | None = None
    needs_reference = False
    # True if the items are texts, so that each of two models can read them by its own tokenizer.
    own_tokenizers = False
    twin: Any = None  # reads the same items by the tokenizer of a candidate
    # Keys of config.json that a model of another origin must share with the dense one.
    needs_equal: Sequence[str] = ()
    # True if the experts that a pruned model still has must be known by their numbers.
    needs_experts = False
    longest = 0  # number of tokens of the longest sequence; `prepare` sets it
    longest_name = ""  # of the item with this sequence; `note_longest` sets both

    def __init__(self, name: str, batch_size: int) -> None:
        if not isinstance(name, str) or not name or "/" in name or name in (".", ".."):
            raise InputError(
                f"Expected a non-empty task name without '/' but got {name!r:.60}: give a `name` "
                "that can name a file."
            )
        if not name.isprintable():
            raise InputError(
                f"Expected a task name of printable characters but got {name!r:.60}: give a `name` "
                "without line breaks, tabs and control characters."
            )
        if (size := len(name.encode())) > _LONGEST_NAME:
            raise InputError(
                f"Expected a task name of at most {_LONGEST_NAME} bytes, as it names files, but "
                f"got {name[:40]!r} with {size} bytes: give a shorter `name`."
            )
        check_whole("batch_size", batch_size, 1)
        self.name = name
        self.batch_size = batch_size

    def allow_code_execution(self) -> None:
        """Allow the task to run code that a model generated.

        It is called before `read`, and only if the user allows it.
        """

    @abstractmethod
    def read(self) -> None:
        """Read the rows, without a model or tokenizer.

        Raises:
            InputError: the data cannot be used.
        """

    @abstractmethod
    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Tokenise the items and set `longest`. It is called once, after `read`.

        Returns:
            The number of items.
        """

    def prepare_twin(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Prepare a copy for a candidate with another tokenizer; call it after `prepare`.

        Args:
            tokenizer: of the candidate; None if both models have the same one.
        """
        self.twin = None
        if tokenizer is not None:
            twin = copy.copy(self)
            twin.prepare(tokenizer)
            self.twin = twin

    def reader(self: _Own, model: str) -> _Own:
        """Return the task that has the tokens of a model.

        Args:
            model: `dense` or `pruned`.
        """
        return self if model == "dense" or self.twin is None else self.twin

    def measure(self, pair: ModelPair, batch: dict[str, Any]) -> Mapping[str, Tensor | Streamed]:
        """Measure one batch of `batches`; each model has its own if their tokenizers differ.

        Returns:
            As `step`; without what compares the tokens of both models if their tokenizers differ.
        """
        if self.twin is None:
            return self.step(pair, batch)
        values: dict[str, Tensor | Streamed] = {}
        for name in pair.models():
            found = self.reader(name).step(pair.alone(name), batch[name])
            values |= {f"{name}/{key.partition('/')[2]}": value for key, value in found.items()}
        return values

    def note_longest(self, lengths: Iterable[int], name: Callable[[int], str]) -> None:
        """Set `longest`, and remember which item it is: a model with fewer positions refuses it.

        Args:
            lengths: number of tokens of each item's longest sequence.
            name: names an item by its number, such as "row 3 of 'rows.jsonl'".
        """
        every = list(lengths)
        self.longest = max(every)
        self.longest_name = name(every.index(self.longest))

    def check(self, model: PreTrainedModel) -> None:
        """Raise an error if the task cannot measure a model.

        It is called once, before any expensive work.

        Args:
            model: the dense model, in evaluation mode.

        Raises:
            InputError: the task cannot measure this model.
        """

    @abstractmethod
    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the batch of the items `indices`. Its tensors are moved to the device."""

    @abstractmethod
    def step(self, pair: ModelPair, batch: dict[str, Any]) -> Mapping[str, Tensor | Streamed]:
        """Measure one batch.

        Returns:
            For each column of the table, one value or one row of a tensor per item of the batch.
            For each sketch of the table, the values of the tokens.
        """

    @abstractmethod
    def report(self, table: ItemTable) -> TaskReport:
        """Summarise the items.

        Every process calls it at every validation, also between two training epochs. Put expensive
        work into generators, see `TaskReport`.

        Args:
            table: values of all items.
        """

    def recipe(self) -> dict[str, Any] | None:
        """Return all settings that the values of the items depend on, as plain data.

        With a recipe, a resumed run does not measure the finished batches again. This is worth it
        for slow tasks; most tasks return None and measure all batches again. A task with a recipe
        must return only tensors from `step`. The models need not be part of the recipe.
        """
        return None

    def chunks(self, size: int) -> list[list[int]]:
        """Return the items of each batch. Each item is in one batch, on any number of ranks."""
        return [
            list(range(start, min(start + self.batch_size, size)))
            for start in range(0, size, self.batch_size)
        ]

    def longest_first(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return the items of each batch by similar length; the longest come first and fail first.

        Args:
            lengths: number of tokens of every item.
        """
        order = sorted(range(len(lengths)), key=lambda item: -lengths[item])
        return [[order[place] for place in chunk] for chunk in Task.chunks(self, len(order))]

    def common(self) -> dict[str, Any]:
        """Return entries that are added to every batch of one pass over the items."""
        return {}

    def batches(self, size: int, rank: int, world: int) -> "RankBatches":
        """Return the batches of one rank: every `world`-th batch.

        A rank with one batch fewer gets an empty batch. Without it, the rank would leave the loop
        while the other ranks wait for it.
        """
        chunks = self.chunks(size)
        mine = chunks[rank::world]
        mine += [[]] * (-(-len(chunks) // world) - len(mine))
        return RankBatches(self, mine)


class RankBatches:
    """A sized iterable of collated batches.

    It is not a DataLoader, because Lightning would shard a DataLoader again.
    """

    def __init__(self, task: Task, chunks: list[list[int]]) -> None:
        self._task = task
        self._chunks = chunks

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        task = self._task
        if task.twin is None:
            yield from self._of(task)
            return
        for dense, pruned in zip(self._of(task), self._of(task.twin), strict=True):
            yield {"dense": dense, "pruned": pruned, "indices": dense["indices"]}

    def _of(self, task: Task) -> Iterator[dict[str, Any]]:
        """Yield the batches of a task, or of its twin."""
        common = task.common()
        for indices in self._chunks:
            batch = task.collate(indices) if indices else {}
            yield {**common, **batch, "indices": torch.tensor(indices, dtype=torch.int64)}
