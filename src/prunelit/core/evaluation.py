"""One validation: measure the items of every task, sum them up, continue after an interruption."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from prunelit.core.conveyor import Conveyor
from prunelit.core.datamodule import PruneData
from prunelit.core.resume import open_journals
from prunelit.models.dense_answers import open_answers
from prunelit.models.model_pair import ModelPair
from prunelit.models.views import view
from prunelit.report.results import Result
from prunelit.report.task_report import TaskReport
from prunelit.tasks.base import Task
from prunelit.tasks.item_table import ItemTable, Streamed
from prunelit.tasks.shared_pass import find_shared

Values = Mapping[str, Tensor | Streamed]


class Evaluation:
    """One pass of both models over the items of every task.

    Args:
        trainer: of the validation.
        pair: the models, on their device.
        data: the tasks, after `prepare`.
        dense_cache: read what the dense model gave from disk, and keep it there.
        together: number of ranks that compute a model together, on the same batches.

    Attributes:
        watch: called after each block that came for a flight; None calls nothing.
        results: results of all tasks, after `summarise`.
        reports: the report of each task by its name, from `summarise` to `finish`.
        brought: number of blocks that came for flights.
        failed: errors of the tasks that could not compute their results, by the task's name.
    """

    def __init__(
        self,
        trainer: Trainer,
        pair: ModelPair,
        data: PruneData,
        *,
        dense_cache: bool = False,
        together: int = 1,
    ) -> None:
        self.results: list[Result] = []
        self.reports: dict[str, TaskReport] = {}
        self.failed: dict[str, Exception] = {}
        self.watch: Callable[[], None] | None = None
        self.brought = 0
        self._tasks = data.tasks
        self._answers = open_answers(pair.dense) if dense_cache else None
        self._pair = replace(pair, answers=self._answers)
        self._shared = {} if pair.dense is None else find_shared(data.tasks.values())
        self._tables = {name: ItemTable(data.sizes[name]) for name in data.tasks}
        self._counts = trainer.global_rank % together == 0  # one of them gives the values
        self._journals = open_journals(trainer, self._pair, data.tasks, writes=self._counts)

    def measure(self, name: str, batch: dict[str, Any]) -> None:
        """Measure one batch of the task `name`, or read it from its journal."""
        if len(batch["indices"]):
            self._name(name)
            self._assign(name, batch, self._values(name, self._pair, batch))

    def measure_flight(self, name: str, batches: Sequence[dict[str, Any]]) -> None:
        """Measure batches of the task `name` together, so that a block comes once for all of them.

        The values are those of `measure`, bit for bit. Every rank must call it, see `Conveyor`.
        """
        self._name(name)
        conveyor = Conveyor(self._pair.models().values(), self.watch)
        full = [batch for batch in batches if len(batch["indices"])]
        found = conveyor.run([partial(self._values_by_view, name, batch) for batch in full])
        self.brought += conveyor.brought
        for batch, values in zip(full, found, strict=True):
            self._assign(name, batch, values)

    def _assign(self, name: str, batch: dict[str, Any], values: Values) -> None:
        if self._counts:
            self._tables[name].assign(batch["indices"], values)

    def _name(self, name: str) -> None:
        """Let the answers of the dense model count for a task."""
        if self._answers is not None:
            self._answers.tasks = self._shared[name].names if name in self._shared else [name]

    def _values_by_view(self, name: str, batch: dict[str, Any]) -> Values:
        views = {model: view(own) for model, own in self._pair.models().items()}
        return self._values(name, replace(self._pair, **views), batch)

    def _values(self, name: str, pair: ModelPair, batch: dict[str, Any]) -> Values:
        measure = partial(self._measure, self._tasks[name], pair, batch)
        return self._journals.values(name, batch["indices"], measure)

    def _measure(self, task: Task, pair: ModelPair, batch: dict[str, Any]) -> Values:
        if (shared := self._shared.get(task.name)) is not None:
            return shared.measure(task.name, pair, batch)
        return task.measure(pair, batch)

    def summarise(self, keep_going: bool) -> None:
        """Collect the items of all ranks and compute the results; every rank must call it.

        Args:
            keep_going: keep the error of a task in `failed` and compute the other tasks first.
        """
        if self._answers is not None:
            self._answers.tell()
        for name, task in self._tasks.items():
            self._tables[name].all_reduce_()
            try:
                self.reports[name] = task.report(self._tables[name])
            except Exception as error:
                if not keep_going:
                    raise
                self.failed[name] = error
        self.results = [result for report in self.reports.values() for result in report.results]

    def finish(self) -> None:
        """Release the reports. Raise the first error in `failed`, or else delete the journals."""
        self.reports = {}
        if self.failed:
            raise next(iter(self.failed.values()))
        self._journals.remove()
