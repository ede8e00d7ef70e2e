"""Retrieval with the model's own embeddings."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics.functional.retrieval import (
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.data.rows import hash_rows
from prunelit.data.sources import subset_of
from prunelit.data.tokens import encode_text, pad, pad_token
from prunelit.errors import InputError
from prunelit.models.architecture import final_hidden
from prunelit.models.finite import all_finite
from prunelit.models.model_pair import ModelPair
from prunelit.report.task_report import TaskReport
from prunelit.tasks.base import Task
from prunelit.tasks.formats.base import Format, read_questions
from prunelit.tasks.item_table import ItemTable
from prunelit.tasks.prompting.text_template import check_template
from prunelit.tasks.retention import read_by, retained_rows


class Retrieval(Task):
    """Find the right answer of a question among the choices of all questions.

    Multiple-choice rows read as a collection: the query is a context, the corpus every distinct
    choice of every row, and the right choice is what is relevant. A text's embedding is the last
    hidden state after the final norm; candidates are ranked by cosine. The default templates ask
    for one word, after PromptEOL (Jiang et al. 2023, arXiv:2307.16645): plain mean pooling is near
    chance on small chat models. `chance_mrr` is the expected reciprocal rank of a random order.

    Args:
        path: rows of any form, see `prunelit.tasks.formats.base.read_questions`.
        split: of the data set.
        query_template: with the field `{text}`.
        candidate_template: with the field `{text}`.
        pooling: `last` token or `mean` over tokens.
        centre: subtract the mean embedding of the queries from each query, and that of the
            candidates from each candidate.
        limit: number of rows; None is all.
        batch_size: texts a batch.
        name: of the task.
        subset: configuration of the data set on the hub.
        format: makes a question of a row that is not one already, see `prunelit.tasks.formats`.
        columns: in place of a format, the rows' own names of `context`, `choices`, `label`.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        query_template: str = 'Question: {text}\nThe answer in one word is "',
        candidate_template: str = 'This word: "{text}" means in one word: "',
        pooling: Literal["last", "mean"] = "last",
        centre: bool = True,
        limit: int | None = None,
        batch_size: int = 64,
        name: str = "retrieval",
        subset: str | None = None,
        format: Format | None = None,
        columns: dict[str, str] | None = None,
    ) -> None:
        super().__init__(name, batch_size)
        if pooling not in ("last", "mean"):
            raise InputError(f"Expected `pooling` to be 'last' or 'mean' but got {pooling!r}.")
        self.path = path
        self.split = split
        self.query_template = query_template
        self.candidate_template = candidate_template
        self.pooling = pooling
        self.centre = centre
        self.limit = limit
        self.subset = subset
        self.format = format
        self.columns = columns

    def read(self) -> None:
        check_template(self.query_template, "text")
        check_template(self.candidate_template, "text")
        options = {"subset": self.subset, "format": self.format, "columns": self.columns}
        self._questions = read_questions(self.path, self.split, self.limit, **options)
        corpus = dict.fromkeys(c for question in self._questions for c in question.choices)
        self._candidates = list(corpus)
        place = {text: index for index, text in enumerate(self._candidates)}
        self._relevant = [place[question.answer] for question in self._questions]

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> int:
        self._pad_id = pad_token(tokenizer)
        texts = [self.query_template.format(text=q.context) for q in self._questions]
        texts += [self.candidate_template.format(text=text) for text in self._candidates]
        self._tokens = [encode_text(tokenizer, text) for text in texts]
        self.longest = max(map(len, self._tokens))
        return len(self._tokens)

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        return dict(pad([self._tokens[index] for index in indices], self._pad_id))

    def step(self, pair: ModelPair, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {
            f"{name}/embedding": self._embed(model, batch["input_ids"], batch["attention_mask"])
            for name, model in pair.models().items()
        }

    def report(self, table: ItemTable) -> TaskReport:
        n = len(self._questions)
        values = ItemTable(n)
        columns: dict[str, Tensor] = {}
        for name in ("dense", "pruned"):
            if f"{name}/embedding" in table:
                embeddings = table[f"{name}/embedding"].double()
                ranks = self._rank_metrics(embeddings[:n], embeddings[n:])
                columns |= {f"{name}/{metric}": value for metric, value in ranks.items()}
        values.assign(torch.arange(n), columns)
        size = len(self._candidates)
        details = {
            "path": self.path,
            "split": self.split,
            "subset": subset_of(self.path, self.subset),
            "rows_sha256": hash_rows([vars(question) for question in self._questions]),
            "query_template": self.query_template,
            "candidate_template": self.candidate_template,
            "pooling": self.pooling,
            "centre": self.centre,
            "candidates": size,
            **read_by("retrieval", "mrr"),
            "chance_mrr": sum(1 / rank for rank in range(1, size + 1)) / size,
        }
        metrics = ["mrr", "recall@1", "recall@5", "recall@10", "ndcg@10"]
        rows = values.paired_results(self.name, metrics, details)
        chance = details["chance_mrr"]
        return TaskReport([*rows, *retained_rows(self.name, columns, chance, details)])

    def _embed(self, model: PreTrainedModel, input_ids: Tensor, mask: Tensor) -> Tensor:
        hidden = final_hidden(model, input_ids, mask).float()
        if not all_finite(hidden[mask.bool()]):
            raise InputError(f"{type(model).__name__} gives embeddings that are not finite.")
        if self.pooling == "last":
            return hidden[torch.arange(len(hidden)), mask.sum(1) - 1]
        weights = mask.unsqueeze(-1).float()
        return (hidden * weights).sum(1) / weights.sum(1)

    def _rank_metrics(self, queries: Tensor, candidates: Tensor) -> dict[str, Tensor]:
        if self.centre:
            queries = queries - queries.mean(0)
            candidates = candidates - candidates.mean(0)
        queries = torch.nn.functional.normalize(queries, dim=1)
        candidates = torch.nn.functional.normalize(candidates, dim=1)
        values: dict[str, list[Tensor]] = {}
        for query, relevant in zip(queries, self._relevant, strict=True):
            target = torch.zeros(len(candidates), dtype=torch.bool)
            target[relevant] = True
            # torchmetrics ignores candidates with a score of 0 or less; the order is the same.
            scores = (candidates @ query + 1) / 2 + 1e-6
            for metric, value in {
                "mrr": retrieval_reciprocal_rank(scores, target),
                "recall@1": retrieval_recall(scores, target, top_k=1),
                "recall@5": retrieval_recall(scores, target, top_k=min(5, len(target))),
                "recall@10": retrieval_recall(scores, target, top_k=min(10, len(target))),
                "ndcg@10": retrieval_normalized_dcg(scores, target, top_k=min(10, len(target))),
            }.items():
                values.setdefault(metric, []).append(value)
        return {metric: torch.stack(column).double() for metric, column in values.items()}
