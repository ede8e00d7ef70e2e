"""The contract of everything that is measured."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.errors import InputError
from prunelit.models.model_pair import ModelPair
from prunelit.report.task_report import TaskReport
from prunelit.tasks.item_table import ItemTable, Streamed


class Task(ABC):
    """One measurement of dense and pruned model on the same items.

    A task turns its data into items, measures a batch of items, and sums the items up. It never
    deals with ranks: batches are the same whatever their number, each is measured by one rank,
    and the table of items is complete before `report` sees it.

    Args:
        name: the task's part of `val/<task>/<metric>`.
        batch_size: items a batch. The last bits of a logit depend on it.

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

    needs_reference = False
    longest = 0  # tokens of the longest sequence that a model will read, set by `prepare`

    def __init__(self, name: str, batch_size: int) -> None:
        if not name or "/" in name:
            raise InputError(f"Expected a task name without '/' but got {name!r}.")
        if batch_size < 1:
            raise InputError(f"Expected `batch_size` of at least 1 but got {batch_size}.")
        self.name = name
        self.batch_size = batch_size

    def allow_code_execution(self) -> None:  # noqa: B027 - most run nothing
        """Programs that a model wrote may be run; called before `read`, if at all."""

    @abstractmethod
    def read(self) -> None:
        """Read the rows, without any model or tokenizer: the place to refuse bad data early."""

    @abstractmethod
    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Tokenise and set `longest`; called once after `read`.

        Returns:
            The number of items.
        """

    def check(self, model: PreTrainedModel) -> None:  # noqa: B027 - most need none
        """Refuse a model that cannot be measured; called once, before any heavy work.

        Args:
            model: the dense one, in evaluation mode.

        Raises:
            InputError: saying what does not fit.
        """

    @abstractmethod
    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """The batch of the items `indices`; tensors in it are moved to the device."""

    @abstractmethod
    def step(self, pair: ModelPair, batch: dict[str, Any]) -> Mapping[str, Tensor | Streamed]:
        """Measure one batch.

        Returns:
            For each column of the table one value (or one row of a tensor) an item of the batch;
            for each of its sketches the values of tokens.
        """

    @abstractmethod
    def report(self, table: ItemTable) -> TaskReport:
        """Sum the items up.

        Every process calls it at every validation, those between two training epochs too. What
        takes long belongs into generators, see `TaskReport`.

        Args:
            table: with the values of all items.
        """

    def recipe(self) -> dict[str, Any] | None:
        """What the values of the items depend on besides the models, as plain data.

        With it batches that an interrupted run measured are not measured again, which pays for
        itself where they take long; most tasks measure anew. Their values must be tensors then.
        """
        return None

    def chunks(self, size: int) -> list[list[int]]:
        """The items of each batch, every one once, the same on any number of ranks."""
        return [
            list(range(start, min(start + self.batch_size, size)))
            for start in range(0, size, self.batch_size)
        ]

    def common(self) -> dict[str, Any]:
        """What all batches of one pass over the items hold; most tasks need nothing."""
        return {}

    def batches(self, size: int, rank: int, world: int) -> "RankBatches":
        """This rank's batches: every `world`-th one, and an empty one where a rank has one fewer.

        Without the empty one a rank with nothing to do would leave the loop while others wait.
        """
        chunks = self.chunks(size)
        mine = chunks[rank::world]
        mine += [[]] * (-(-len(chunks) // world) - len(mine))
        return RankBatches(self, mine)


class RankBatches:
    """A sized iterable of collated batches. Not a DataLoader: Lightning would shard it again."""

    def __init__(self, task: Task, chunks: list[list[int]]) -> None:
        self._task = task
        self._chunks = chunks

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        common = self._task.common()
        for indices in self._chunks:
            batch = self._task.collate(indices) if indices else {}
            yield {**common, **batch, "indices": torch.tensor(indices, dtype=torch.int64)}
