"""Dense against pruned in embedding, logit and probability space, on text."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunelit.errors import check_positive
from prunelit.models.comparison import sum_rows
from prunelit.models.model_pair import ModelPair
from prunelit.report.task_report import TaskReport
from prunelit.tasks.item_table import ItemTable
from prunelit.tasks.shared_pass import LOG_PROBABILITIES, LogitTask, Values


class Deviation(LogitTask):
    """Every quantity of `prunelit.compare`, teacher-forced on the windows of a text.

    Standard errors treat windows, not tokens, as independent.

    Args:
        path: text rows, see `prunelit.data.load_rows`.
        length: L, number of tokens per window, at least 2, the BOS token included.
        temperature: of the softmax.
        logit_gram: compute the logit space from embeddings and the Gram matrix of the unembedding,
            where both models have the same one, see `prunelit.metrics.LogitGram`. False computes it
            from logits in float32.
        batch_size: number of windows per batch.
        name: of the task.
        kwargs: options of `WindowTask`.

    Example:
        >>> from prunelit.tasks import Deviation
        >>> task = Deviation("prunelit:facts.jsonl", column="context", length=64, limit=8)
        >>> task.name, task.needs_reference
        ('deviation', True)
    """

    needs_reference = True
    needs_equal = ("vocab_size",)

    def __init__(
        self,
        path: str,
        length: int = 256,
        temperature: float = 1.0,
        logit_gram: bool = True,
        batch_size: int = 4,
        name: str = "deviation",
        **kwargs: Any,
    ) -> None:
        super().__init__(path=path, length=length, batch_size=batch_size, name=name, **kwargs)
        check_positive("temperature", temperature)
        self.temperature = temperature
        self.logit_gram = logit_gram

    def summarise(
        self,
        pair: ModelPair,
        batch: dict[str, Any],
        hidden: Sequence[Tensor],
        values: Mapping[str, Tensor],
    ) -> Values:
        mask = torch.ones_like(batch["input_ids"], dtype=torch.bool)
        own = {name: x.flatten() for name, x in values.items() if name not in LOG_PROBABILITIES}
        sums = sum_rows(own, mask)
        return {name: value / self.length for name, value in sums.items()}

    def report(self, table: ItemTable) -> TaskReport:
        details = {**self.details(self.length), "temperature": self.temperature}
        return TaskReport(table.pair_results(self.name, table.columns(), details))
