"""Measure the dense model alone, and foretell how many items its margins need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_info

import prunelit.tasks as known_tasks
from prunelit.core.calibration_text import CalibrationText
from prunelit.core.datamodule import PruneData
from prunelit.core.new.plans import Plan
from prunelit.core.weights import Weights
from prunelit.models.dense_answers import open_answers
from prunelit.models.model_pair import ModelPair
from prunelit.report.main_scores import chance
from prunelit.report.results import Result
from prunelit.report.score_test import LEVEL, PairedScores, ScoreTest, critical_value
from prunelit.report.verdicts import Margins
from prunelit.tasks.base import Task
from prunelit.tasks.item_table import ItemTable

FLIPS = 0.1  # share of the items whose score is assumed to change
_SMOOTH = 1000  # items that a small task is repeated to, so that a share of them is a number


@dataclass(frozen=True)
class DenseScore:
    """Score of the dense model on a task.

    Args:
        score: its main score.
        results: of the task, of the dense model.
        lead: False if the model is not significantly above its floor.
        needed: number of items by which a model that loses nothing is told to keep; None if it is
            above 100,000.
    """

    score: Result
    results: list[Result]
    lead: bool
    needed: int | None

    @property
    def floor(self) -> float:
        """Score of random guessing, or of the most frequent answer."""
        return chance(self.score) or 0.0


class DenseModel:
    """The model and tokenizer of a source, and the tasks that it is measured on.

    Args:
        source: see `prunelit.load_pretrained`.
        plans: the tasks.
        calibration: arguments of `prunelit.CalibrationText`, to see if there is enough text; None
            without one.

    Raises:
        InputError: if the model, a file or a task does not fit.
    """

    def __init__(
        self, source: str, plans: Sequence[Plan], calibration: Mapping[str, Any] | None
    ) -> None:
        self._weights = Weights(source)
        self._plans = plans
        self._calibration = calibration

    def has_chat(self) -> bool:
        """Return True if the tokenizer has a chat template."""
        return bool(self._weights.tokenizer.chat_template)

    def measure(self, margins: Margins) -> dict[str, DenseScore]:
        """Measure the tasks that have a main score.

        Args:
            margins: of the forecast.

        Returns:
            The score of each task by its name.
        """
        tasks = [getattr(known_tasks, plan.task)(**plan.arguments) for plan in self._plans]
        text = None if self._calibration is None else CalibrationText(**self._calibration)
        data = PruneData(text, tasks)
        data.prepare(self._weights.tokenizer)
        measured = [task for task, plan in zip(tasks, self._plans, strict=True) if plan.use]
        if not measured:
            return {}
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = self._weights.origin.read().eval()
        model.to(device)  # type: ignore[arg-type]
        # Later runs read what the model gives here.
        pair = ModelPair(model, None, self._weights.tokenizer, answers=open_answers(model))
        found = {}
        uses = {plan.name: plan.use for plan in self._plans}
        for task in measured:
            margin, absolute = margins.of(task.name, str(uses[task.name]))
            task.check(model)
            rank_zero_info(f"Measuring the dense model on {task.name} ...")
            table = _measure(task, data.sizes[task.name], pair)
            report = task.report(table)
            assert report.scores is not None
            results = [result for result in report.results if result.model == "dense"]
            score = next(one for one in results if one.metric == one.details["primary"])
            test = ScoreTest(report.scores)
            lead = test.n > 1 and test.lead_z() >= critical_value(LEVEL)
            needed = None
            if lead or absolute:
                level = LEVEL / len(measured)
                needed = foretell(report.scores, margin, level, absolute=absolute)
            found[task.name] = DenseScore(score, results, lead, needed)
        return found


def foretell(
    scores: PairedScores, margin: float, level: float, *, absolute: bool = False
) -> int | None:
    """Foretell the number of items that shows, with 80% power, that a model keeps the margin.

    It is assumed that the model loses nothing, and that the scores of `FLIPS` of the items change:
    half of these are the best, and they change places with the worst.

    Args:
        scores: of the dense model.
        margin: the share of the lead that must remain.
        level: of the test.
        absolute: the margin is the highest loss instead.

    Returns:
        The number of items; None if it is above 100,000.
    """
    repeats = -(-_SMOOTH // len(scores))
    dense, floor = (np.repeat(values, repeats) for values in (scores.dense, scores.floor))
    order = np.argsort(dense, kind="stable")
    count = round(FLIPS / 2 * len(dense))
    worst, best = order[:count], order[len(order) - count :]
    pruned = dense.copy()
    pruned[best], pruned[worst] = dense[worst], dense[best]
    test = ScoreTest(PairedScores(dense, pruned, floor))
    return (test.items_for_loss if absolute else test.items_for_share)(margin, level)


@torch.inference_mode()
def _measure(task: Task, size: int, pair: ModelPair) -> ItemTable:
    """Return the items of a task, as if both models were the one of the pair."""
    table = ItemTable(size)
    for batch in task.batches(size, 0, 1):
        values = task.step(pair, move_data_to_device(batch, pair.pruned.device))
        dense = {
            f"dense/{name.removeprefix('pruned/')}": value
            for name, value in values.items()
            if name.startswith("pruned/")
        }
        table.assign(batch["indices"], {**values, **dense})
    return table
