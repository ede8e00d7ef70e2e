"""One pass of each model for several tasks on the windows of one text."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunelit.models.architecture import final_hidden
from prunelit.models.comparison import token_deviations
from prunelit.models.model_pair import ModelPair
from prunelit.tasks.base import Task
from prunelit.tasks.item_table import Streamed
from prunelit.tasks.window_task import WindowTask

Values = Mapping[str, Tensor | Streamed]

# Values of a token that are no deviation: the log-probabilities of the next one.
LOG_PROBABILITIES = ("dense_log_probability", "pruned_log_probability")


class LogitTask(WindowTask):
    """A task on windows that compares both models by their logits, token by token.

    Several of them on the same windows, in the same batches, share one pass of each model.
    """

    temperature = 1.0  # of the deviations
    # The logit space of the deviations comes from the Gram matrix of the unembedding, where it can.
    # None if the task does not read it.
    logit_gram: bool | None = None
    needs_deviations = True  # False if the task reads only its own values, and can be `alone`

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        return {**super().collate(indices), "windows": list(indices)}

    def step(self, pair: ModelPair, batch: dict[str, Any]) -> Values:
        if not self.needs_deviations:
            return self.alone(pair, batch)
        return read_together([self], pair, batch)[0]

    def alone(self, pair: ModelPair, batch: dict[str, Any]) -> Values:
        """Return what `step` returns, without deviations, of a pair that may lack the dense model.

        Args:
            pair: the models.
            batch: the batch.
        """
        raise NotImplementedError

    @abstractmethod
    def summarise(
        self,
        pair: ModelPair,
        batch: dict[str, Any],
        hidden: Sequence[Tensor],
        values: Mapping[str, Tensor],
    ) -> Values:
        """Return what `step` returns.

        Args:
            pair: both models.
            batch: the batch.
            hidden: final embeddings (B, L, D) of the dense and of the pruned model.
            values: (B, L) values of each deviation, and in `LOG_PROBABILITIES` those of the true
                next token. The last token of a window has no true one: its value has no meaning.
        """


def read_together(
    tasks: Sequence[LogitTask], pair: ModelPair, batch: dict[str, Any]
) -> list[Values]:
    """Measure a batch of windows for several tasks, with one pass of each model.

    The logits of a few tokens at a time are in memory.

    Args:
        tasks: see `find_shared`.
        pair: both models.
        batch: of any of the tasks.

    Returns:
        The values of each task.
    """
    assert pair.dense is not None
    ids = batch["input_ids"]
    mask = torch.ones_like(ids)
    hidden = [pair.ask(name, final_hidden, ids, mask) for name in pair.models()]
    flat = [own.flatten(0, 1) for own in hidden]
    targets = ids.roll(-1, 1).flatten()
    found = token_deviations(
        pair.dense,
        pair.pruned,
        *flat,
        temperature=tasks[0].temperature,
        targets=targets,
        gram=pair.logit_gram() if any(task.logit_gram for task in tasks) else None,
    )
    values = {name: value.view(ids.shape) for name, value in found.items()}
    return [task.summarise(pair, batch, hidden, values) for task in tasks]


class SharedPass:
    """Measures tasks on the same windows: the first that gets a batch measures it for all.

    Args:
        tasks: see `find_shared`.

    Attributes:
        names: of the tasks.
    """

    def __init__(self, tasks: Sequence[LogitTask]) -> None:
        self.names = [task.name for task in tasks]
        self._tasks = tasks
        self._kept: dict[tuple[str, tuple[int, ...]], Values] = {}

    def measure(self, task: str, pair: ModelPair, batch: dict[str, Any]) -> Values:
        """Return the values of a batch, see `Task.measure`. Each is kept until it is asked for.

        Args:
            task: its name.
            pair: both models.
            batch: one of `Task.batches`.
        """
        items = tuple(batch["indices"].tolist())
        if (task, items) not in self._kept:
            found = read_together(self._tasks, pair, batch)
            self._kept |= {(name, items): own for name, own in zip(self.names, found, strict=True)}
        return self._kept.pop((task, items))


def find_shared(tasks: Iterable[Any]) -> dict[str, SharedPass]:
    """Find tasks that can share one pass of each model.

    They read the same windows in batches of the same size, with the same temperature and the same
    logit space, and at least one of them needs the deviations.

    Args:
        tasks: prepared.

    Returns:
        The shared pass of each such task, by its name; none for a task that has no partner.
    """
    groups: list[list[LogitTask]] = []
    for task in tasks:
        # A class of a user may measure in its own way.
        own = isinstance(task, LogitTask) and type(task).chunks is Task.chunks
        if own and (type(task).step, type(task).collate) == (LogitTask.step, LogitTask.collate):
            alike = (one for one in groups if all(_same_pass(other, task) for other in one))
            group = next(alike, None)
            if group is None:
                groups.append([task])
            else:
                group.append(task)
    found: dict[str, SharedPass] = {}
    for group in groups:
        if len(group) > 1 and any(task.needs_deviations for task in group):
            found |= dict.fromkeys((task.name for task in group), SharedPass(group))
    return found


def _same_pass(one: LogitTask, other: LogitTask) -> bool:
    return (
        one.batch_size == other.batch_size
        and one.temperature == other.temperature
        and (None in (one.logit_gram, other.logit_gram) or one.logit_gram == other.logit_gram)
        and torch.equal(one.windows, other.windows)  # False for tensors of different shapes
    )
