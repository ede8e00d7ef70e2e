"""One validation: measure the items of every task, sum them up, continue after an interruption."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from prunelit.core.datamodule import PruneData
from prunelit.core.resume import open_journals
from prunelit.models.dense_answers import open_answers
from prunelit.models.model_pair import ModelPair
from prunelit.report.results import Result
from prunelit.report.task_report import TaskReport
from prunelit.tasks.base import Task
from prunelit.tasks.item_table import ItemTable, Streamed
from prunelit.tasks.shared_pass import find_shared


class Evaluation:
    """One pass of both models over the items of every task.

    Args:
        trainer: of the validation.
        pair: the models, on their device.
        data: the tasks, after `prepare`.
        dense_cache: read what the dense model gave from disk, and keep it there.

    Attributes:
        results: results of all tasks, after `summarise`.
        reports: the report of each task by its name, from `summarise` to `finish`.
        failed: errors of the tasks that could not compute their results, by the task's name.
    """

    def __init__(
        self, trainer: Trainer, pair: ModelPair, data: PruneData, *, dense_cache: bool = False
    ) -> None:
        self.results: list[Result] = []
        self.reports: dict[str, TaskReport] = {}
        self.failed: dict[str, Exception] = {}
        self._tasks = data.tasks
        self._answers = open_answers(pair.dense) if dense_cache else None
        self._pair = replace(pair, answers=self._answers)
        self._shared = {} if pair.dense is None else find_shared(data.tasks.values())
        self._tables = {name: ItemTable(data.sizes[name]) for name in data.tasks}
        self._journals = open_journals(trainer, self._pair, data.tasks)

    def measure(self, name: str, batch: dict[str, Any]) -> None:
        """Measure one batch of the task `name`, or read it from its journal."""
        indices = batch["indices"]
        if len(indices):
            task = self._tasks[name]
            if self._answers is not None:
                self._answers.tasks = self._shared[name].names if name in self._shared else [name]
            values = self._journals.values(name, indices, partial(self._measure, task, batch))
            self._tables[name].assign(indices, values)

    def _measure(self, task: Task, batch: dict[str, Any]) -> Mapping[str, Tensor | Streamed]:
        if (shared := self._shared.get(task.name)) is not None:
            return shared.measure(task.name, self._pair, batch)
        return task.measure(self._pair, batch)

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
