"""Fixed answers: all items of a task share one small set of answers, as in a classifier."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from prunelit.report.results import Result
from prunelit.tasks.item_table import ItemTable
from prunelit.tasks.questions import Example, Question

_ITEMS_A_LABEL = 5  # at least so many items for each different target
_WARNED = 10  # items; fewer may have one answer by accident


class Labels:
    """The fixed answers of a task, and the right one of each item.

    Questions have fixed answers if two or more of them all have the same choices. Examples have
    fixed answers if there are at least two different targets, and five items for each target;
    upper and lower case are equal there. Otherwise the answers are open.

    Args:
        asked: the items.

    Attributes:
        texts: the fixed answers; empty if the answers are open.
        answers: the right answer of each item, spelled as in `texts`.

    Example:
        >>> from prunelit.tasks.labels import Labels
        >>> from prunelit.tasks.questions import Question
        >>> labels = Labels([Question("", "Is it?", ["no", "yes"], n) for n in (1, 1, 0)])
        >>> labels.texts, labels.constant_scores().tolist()
        (['no', 'yes'], [1.0, 1.0, 0.0])
    """

    def __init__(self, asked: Sequence[Question | Example]) -> None:
        self.texts: list[str] = []
        self.answers = [one.target for one in asked]
        questions = [one for one in asked if isinstance(one, Question)]
        if len(questions) == len(asked):
            if len(asked) > 1 and len({frozenset(one.choices) for one in questions}) == 1:
                self.texts = sorted(set(questions[0].choices))
            return
        spelled: dict[str, str] = {}
        for answer in self.answers:
            spelled.setdefault(answer.strip().casefold(), answer)
        if 2 <= len(spelled) <= len(asked) / _ITEMS_A_LABEL:
            self.texts = sorted(spelled.values())
            self.answers = [spelled[answer.strip().casefold()] for answer in self.answers]

    def __bool__(self) -> bool:
        return bool(self.texts)

    @property
    def kind(self) -> str:
        """`fixed` or `open`."""
        return "fixed" if self else "open"

    def constant_scores(self) -> Tensor:
        """Return the scores, (n,), of a model that always gives the most frequent right answer.

        If the answers are open they are 0.
        """
        if not self:
            return torch.zeros(len(self.answers), dtype=torch.float64)
        most = max(sorted(set(self.answers)), key=self.answers.count)
        return torch.tensor([answer == most for answer in self.answers], dtype=torch.float64)

    def weights(self) -> Tensor:
        """Return weights, (n,) with mean 1, that give every right answer the same influence."""
        counts = Counter(self.answers)
        weights = [len(self.answers) / (len(counts) * counts[one]) for one in self.answers]
        return torch.tensor(weights, dtype=torch.float64)

    def results(
        self, task: str, score: str, values: Mapping[str, Tensor], details: dict[str, Any]
    ) -> list[Result]:
        """Summarise the fixed answers, and warn if a model always gives the same one.

        Args:
            task: name of the task.
            score: the main score.
            values: by name (n,): `<model>/<score>` and, for each fixed answer,
                `<model>/chosen/<answer>`, the share of the item's answers that are this one.
            details: of the other results.

        Returns:
            `balanced_<score>`, the mean of the score over the right answers, whose chance is 1 over
            their number; for each answer
            `chosen/<answer>` and, if it is right for an item, `<score>/<answer>`. An empty list if
            the answers are open.
        """
        if not self:
            return []
        details = {**details, "score": score}
        size = len(self.answers)
        models = [name for name in ("dense", "pruned") if f"{name}/{score}" in values]
        columns = {
            f"{name}/balanced_{score}": values[f"{name}/{score}"] * self.weights()
            for name in models
        }
        balanced = {**details, "chance": 1 / len(set(self.answers))}
        results = _paired(task, f"balanced_{score}", columns, balanced)
        for text in self.texts:
            own = {**details, "class": text}
            metric = f"chosen/{text}"
            columns = {f"{name}/{metric}": values[f"{name}/{metric}"] for name in models}
            results += _paired(task, metric, columns, own)
            for name in models:
                if size >= _WARNED and bool((columns[f"{name}/{metric}"] == 1).all()):
                    rank_zero_warn(
                        f"The {name} model chooses {text!r} for each of the {size} items of "
                        f"{task!r}: its score is the share of this answer."
                    )
            if indices := [n for n, answer in enumerate(self.answers) if answer == text]:
                metric = f"{score}/{text}"
                columns = {
                    f"{name}/{metric}": values[f"{name}/{score}"][indices] for name in models
                }
                results += _paired(task, metric, columns, own)
        return results


def _paired(
    task: str, metric: str, columns: Mapping[str, Tensor], details: dict[str, Any]
) -> list[Result]:
    table = ItemTable(len(next(iter(columns.values()))))
    table.assign(torch.arange(table.size), columns)
    return table.paired_results(task, [metric], details)
