"""Semantic similarity of two texts, with the model's own embeddings."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunelit.data.cells import as_number
from prunelit.data.rows import hash_rows, load_rows
from prunelit.data.tokens import pad, pad_token
from prunelit.errors import InputError
from prunelit.metrics.correlation import jackknife_error, spearman
from prunelit.metrics.spaces.embedding import embedding_cosine
from prunelit.models.inference.embedding import embed
from prunelit.models.model_pair import ModelPair
from prunelit.report.results import Result
from prunelit.report.task_report import TaskReport
from prunelit.tasks.embedding_task import EmbeddingTask, same_width
from prunelit.tasks.item_table import ItemTable
from prunelit.tasks.prompting.text_template import TextTemplate
from prunelit.tasks.retention import jackknife_scores, retained_results, score_details
from prunelit.tasks.row_task import RowTask


class SemanticSimilarity(RowTask, EmbeddingTask):
    """Correlate the cosine of two texts with the similarity that people gave them, as in STS-B.

    `spearman` is the rank correlation over all pairs of texts. Its standard error is that of a
    jackknife over pairs. `embedding_cosine` is the cosine of the dense and the pruned embedding of
    a text, averaged over the two texts of a pair. The default template asks for one word, after
    PromptEOL (Jiang et al. 2023, arXiv:2307.16645).

    Args:
        subset: configuration of a data set on the hub.
        first: column of one text.
        second: column of the other text.
        score: column of the similarity, a number; higher is more similar.
        template: with the field `{text}`.
        kwargs: options of `RowTask` and `EmbeddingTask`.

    Example:
        >>> from prunelit.tasks import SemanticSimilarity
        >>> task = SemanticSimilarity("stsb.jsonl", pooling="mean", skip=1)
        >>> task.name, task.length
        ('similarity', 128)
    """

    use = "similarity"

    def __init__(
        self,
        path: str,
        subset: str | None = None,
        first: str = "sentence1",
        second: str = "sentence2",
        score: str = "score",
        template: str = 'This sentence: "{text}" means in one word: "',
        length: int | None = 128,
        batch_size: int = 32,
        name: str = "similarity",
        **kwargs: Any,
    ) -> None:
        super().__init__(path=path, length=length, batch_size=batch_size, name=name, **kwargs)
        self.subset = subset
        self.first = first
        self.second = second
        self.score = score
        self.template = template

    def read(self) -> None:
        self._template = TextTemplate(self.template)
        columns = [self.first, self.second, self.score]
        rows = load_rows(
            self.pinned, columns=columns, split=self.split, name=self.subset, limit=self.limit
        )
        for number, row in enumerate(rows):
            for column in (self.first, self.second):
                if not isinstance(row[column], str):
                    raise self.refuse_row(number, f"`{column}` must be a string")
            value = as_number(row[self.score])
            if value is None:
                problem = f"`{self.score}` must be a number but is {row[self.score]!r:.60}"
                raise self.refuse_row(number, problem)
            if not math.isfinite(value):
                raise self.refuse_row(number, f"`{self.score}` must be finite but is {value}")
            row[self.score] = value
        self._rows = [[row[column] for column in columns] for row in rows]
        self._scores = torch.tensor([row[2] for row in self._rows], dtype=torch.float64)
        if len(self._scores.unique()) < 2 or len(rows) < 3:
            raise InputError(
                f"Expected at least three pairs with different scores in {self.path!r}: there is "
                "no correlation with a constant."
            )

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> int:
        self._template.check(tokenizer, self.length)
        self._tokenizer = tokenizer
        self._tokens = [
            [self._template.tokens(tokenizer, text, self.length) for text in row[:2]]
            for row in self._rows
        ]
        self.note_longest((max(map(len, both)) for both in self._tokens), self.name_row)
        return len(self._rows)

    def chunks(self, size: int) -> list[list[int]]:
        return self.longest_first([max(map(len, both)) for both in self._tokens])

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        both = [self._tokens[index][side] for side in (0, 1) for index in indices]
        return dict(pad(both, pad_token(self._tokenizer)))

    def step(self, pair: ModelPair, batch: dict[str, Any]) -> dict[str, Tensor]:
        values, vectors = {}, []
        inputs = batch["input_ids"], batch["attention_mask"]
        for name in pair.models():
            vector = pair.ask(name, embed, *inputs, **self.embed_options(pair, name)).double()
            one, other = vector.chunk(2)
            values[f"{name}/similarity"] = embedding_cosine(one, other)
            vectors.append(vector)
        if same_width(vectors):
            dense, pruned = vectors
            values["embedding_cosine"] = embedding_cosine(dense, pruned).view(2, -1).mean(0)
        return values

    def report(self, table: ItemTable) -> TaskReport:
        details = self.details()
        found: dict[str, tuple[float, Tensor]] = {
            name: spearman(table[f"{name}/similarity"], self._scores)
            for name in table.models("similarity")
        }
        scores = None
        if len(found) == 2:
            scores = jackknife_scores(found["dense"], found["pruned"])
            (dense, without_dense), (pruned, without_pruned) = found["dense"], found["pruned"]
            found["difference"] = pruned - dense, without_pruned - without_dense
        results = []
        for name, (value, without) in found.items():
            error, own = jackknife_error(without), dict(details)
            if math.isnan(error):
                own["no_error_bar"] = "undefined without some of the pairs"
            results.append(Result(self.name, "spearman", name, value, error, table.size, own))
        results += table.pair_results(self.name, ["embedding_cosine"], details)
        results += retained_results(self.name, scores, details)
        return TaskReport(results, scores=scores)

    def details(self) -> dict[str, Any]:
        """Return the options and hashes that two comparable results have in common."""
        return {
            **self.source_details(),
            "pairs_sha256": hash_rows(self._rows),
            "template": self.template,
            **self.embedding_details(),
            **score_details(self.use, "spearman"),
        }
