"""Perplexity of a text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from prunelit.models.inference.scoring import check_log_probability, window_nll
from prunelit.models.model_pair import ModelPair
from prunelit.report.results import Result
from prunelit.report.task_report import TaskReport
from prunelit.tasks.item_table import ItemTable, mean
from prunelit.tasks.shared_pass import LogitTask, Values


class Perplexity(LogitTask):
    """Perplexity: exp of the mean negative log-likelihood of a token, in non-overlapping windows.

    The first token of a window has no context and is not scored, so a window of L tokens has L - 1
    scored tokens. `nll` is in nats per token. Standard errors treat windows as independent. Those
    of `perplexity` and its `difference` follow from `nll` by the delta method (first order).
    Perplexity is no use of a model and has no floor, so the task has no main score and no verdict.

    Args:
        path: text rows, see `prunelit.data.load_rows`.
        batch_size: number of windows per batch.
        name: of the task.
        kwargs: options of `WindowTask`.

    A task that compares both models on the same windows, in the same batches, shares its pass of
    each model: `Deviation` and `Distribution`.

    Example:
        >>> from prunelit.tasks import Perplexity
        >>> task = Perplexity("prunelit:facts.jsonl", column="context", length=64, limit=8)
        >>> task.name, task.needs_reference
        ('perplexity', False)
    """

    needs_deviations = False

    def __init__(
        self,
        path: str,
        batch_size: int = 8,
        name: str = "perplexity",
        **kwargs: Any,
    ) -> None:
        super().__init__(path=path, batch_size=batch_size, name=name, **kwargs)

    def summarise(
        self,
        pair: ModelPair,
        batch: dict[str, Any],
        hidden: Sequence[Tensor],
        values: Mapping[str, Tensor],
    ) -> Values:
        found = {
            f"{name}/nll": -values[f"{name}_log_probability"][:, :-1] for name in pair.models()
        }
        for name, model in pair.models().items():
            check_log_probability(model, found[f"{name}/nll"])
        return {name: value.contiguous().mean(1) for name, value in found.items()}

    def alone(self, pair: ModelPair, batch: dict[str, Any]) -> Values:
        return {
            f"{name}/nll": pair.ask(name, window_nll, batch["input_ids"]).mean(1)
            for name in pair.models()
        }

    def report(self, table: ItemTable) -> TaskReport:
        details = self.details(self.length - 1)
        results = table.paired_results(self.name, ["nll"], details)
        perplexity = {
            result.model: _exp(result.value) for result in results if result.model != "difference"
        }
        # d exp(m) = exp(m) dm for each model and each window, so the values stay paired by window.
        scaled = {model: value * table[f"{model}/nll"] for model, value in perplexity.items()}
        if "dense" in perplexity:
            perplexity["difference"] = perplexity["pruned"] - perplexity["dense"]
            scaled["difference"] = scaled["pruned"] - scaled["dense"]
        results += [
            Result(
                self.name, "perplexity", model, value, mean(scaled[model])[1], table.size, details
            )
            for model, value in perplexity.items()
        ]
        return TaskReport(results)


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf
