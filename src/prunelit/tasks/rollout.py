"""What the models write: greedy answers, and where they part."""

from typing import Any

import torch
from torch import Tensor

from prunelit.metrics.divergence import first_divergence
from prunelit.metrics.repetition import repetition
from prunelit.models.generation import rollout
from prunelit.report.rows import Row
from prunelit.rows import hash_rows
from prunelit.tasks.answers import contains, normalise
from prunelit.tasks.base import Pair
from prunelit.tasks.formats import read_questions
from prunelit.tasks.items import ItemTable
from prunelit.tasks.prompts import PromptTask
from prunelit.tasks.questions import check_template
from prunelit.tasks.retention import retained_rows


class Rollout(PromptTask):
    """Greedy rollouts of both models from the same prompts (free-running: each reads its own text).

    Metrics, means over prompts: `exact_match` of answer and target after normalising case,
    punctuation and spaces; `contains` the target as whole words; `repetition`, the fraction of
    4-grams of tokens that repeat an earlier one; `end_of_text`, whether the model stopped by
    itself; `length` in tokens. Of the pair: `first_divergence`, the step (from 0) of the first
    token that differs, where a pair that never differs counts its whole length; and `diverged`,
    the share that differs at all; and `retained`, the pruned `contains` over the dense one.

    Args:
        path: rows `{id, context, choices, label}`, see `prunelit.rows.load_rows`; the right choice
            is the target.
        split: of the data set.
        template: of the user's message, with the field `{context}`.
        chat: wrap the message in the tokenizer's chat template.
        max_new_tokens: budget of a rollout.
        limit: number of prompts; None is all.
        batch_size: prompts a batch.
        name: of the task.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        template: str = "{context}",
        chat: bool = True,
        max_new_tokens: int = 24,
        limit: int | None = None,
        batch_size: int = 32,
        name: str = "rollout",
    ) -> None:
        super().__init__(
            path, split, "context", template, chat, max_new_tokens, limit, batch_size, name
        )

    def read(self) -> None:
        check_template(self.template, "context")
        self._questions = read_questions(self.path, self.split, self.limit)
        self.contexts = [question.context for question in self._questions]

    def step(self, pair: Pair, batch: dict[str, Any]) -> dict[str, Tensor]:
        targets = [self._questions[index].answer for index in batch["prompts"]]
        values: dict[str, Tensor] = {}
        for name, model in pair.models().items():
            written = rollout(
                model,
                pair.tokenizer,
                batch["input_ids"],
                batch["attention_mask"],
                max_new_tokens=self.max_new_tokens,
            )
            tokens = written.tokens.cpu()
            answers = [self.text(row) for row in tokens]
            columns = {
                "exact_match": [
                    normalise(a) == normalise(t) for a, t in zip(answers, targets, strict=True)
                ],
                "contains": [contains(a, t) for a, t in zip(answers, targets, strict=True)],
                "repetition": [repetition(row[row >= 0].tolist()) for row in tokens],
                "end_of_text": written.ended.tolist(),
                "length": (tokens >= 0).sum(1).tolist(),
            }
            values[f"{name}/tokens"] = tokens
            for metric, column in columns.items():
                values[f"{name}/{metric}"] = torch.tensor(column, dtype=torch.float64)
        if pair.dense is not None:
            first, diverged = first_divergence(values["dense/tokens"], values["pruned/tokens"])
            values |= {"first_divergence": first, "diverged": diverged}
        return values

    def summarise(self, table: ItemTable) -> list[Row]:
        details = {
            **self.details(),
            "rows_sha256": hash_rows([vars(question) for question in self._questions]),
            "decoding": "greedy",
        }
        metrics = ["exact_match", "contains", "repetition", "end_of_text", "length"]
        rows = table.paired_rows(self.name, metrics, details)
        columns = {name: table[name] for name in table.columns()}
        rows += retained_rows(self.name, "generation", "contains", columns, 0.0, details)
        return rows + table.pair_rows(self.name, ["first_divergence", "diverged"], details)

    def texts(self, table: ItemTable) -> list[dict[str, str]]:
        """Question, target and both answers, for a text table."""
        rows = []
        for index, question in enumerate(self._questions):
            row = {"prompt": question.context, "target": question.answer}
            for name in ("dense", "pruned"):
                if f"{name}/tokens" in table:
                    row[name] = self.text(table[f"{name}/tokens"][index])
            rows.append(row)
        return rows
