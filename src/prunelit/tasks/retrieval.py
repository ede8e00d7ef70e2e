"""Retrieval of the right answer of a question, with the model's own embeddings."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunelit.errors import InputError, check_whole
from prunelit.metrics.retrieval import list_metrics, rank_documents
from prunelit.models.inference.token_tree import group_by_length
from prunelit.report.task_report import TaskReport
from prunelit.tasks.embedding_task import EmbeddingTask
from prunelit.tasks.item_table import ItemTable
from prunelit.tasks.labels import Labels
from prunelit.tasks.prompting.text_template import TextTemplate
from prunelit.tasks.question_task import QuestionTask
from prunelit.tasks.retention import paired_scores, retained_results, score_details

_AT_A_TIME = 1 << 22  # document numbers in the lists that are held at a time: 32 MB


class Retrieval(QuestionTask, EmbeddingTask):
    """Find the right answer of a question among the choices of all questions.

    The query is the context of a question. The documents are the distinct choices of all questions.
    The right choice is the one relevant document. Documents are ranked by cosine, as
    `CollectionRetrieval` does. The default templates ask for one word, after PromptEOL (Jiang et
    al. 2023, arXiv:2307.16645), since mean pooling is near chance on small chat models.

    Metrics are `mrr` (mean reciprocal rank), `recall@k` and `ndcg@10`. `chance_mrr` is the expected
    reciprocal rank in a random order. If all questions have the same choices, it is the one in the
    order of how often a choice is right.

    Args:
        query_template: with the field `{text}`.
        document_template: with the field `{text}`.
        centre: subtract the mean embedding of the queries from each query, and that of the
            documents from each document.
        recall_at: every k of `recall@k`.
        batch_size: most texts of a batch. Texts are sorted by length, the longest first, and
            divided where padding and passes cost least. Embeddings of other batches differ by
            rounding; 1 reads every text alone.
        tokens: most tokens of a batch, padding included. A single text may have more.
        kwargs: options of `QuestionTask` and `EmbeddingTask`.

    Example:
        >>> from prunelit.tasks import Retrieval
        >>> task = Retrieval("prunelit:facts.jsonl", pooling="mean", limit=20)
        >>> task.read()
        >>> len(task.documents)
        79
    """

    use = "retrieval"

    def __init__(
        self,
        path: str,
        query_template: str = 'Question: {text}\nThe answer in one word is "',
        document_template: str = 'This word: "{text}" means in one word: "',
        centre: bool = True,
        recall_at: Sequence[int] = (1, 5, 10),
        batch_size: int = 64,
        name: str = "retrieval",
        tokens: int = 4096,
        **kwargs: Any,
    ) -> None:
        super().__init__(path=path, batch_size=batch_size, name=name, **kwargs)
        if min(recall_at, default=1) < 1:
            raise InputError(f"Expected `recall_at` of at least 1 but got {list(recall_at)}.")
        check_whole("tokens", tokens, 1)
        self.query_template = query_template
        self.document_template = document_template
        self.centre = centre
        self.recall_at = list(recall_at)
        self.tokens = tokens

    def read(self) -> None:
        self._templates = TextTemplate(self.query_template), TextTemplate(self.document_template)
        self._questions = self.read_questions()
        choices = (choice for question in self._questions for choice in question.choices)
        self.documents = list(dict.fromkeys(choices))
        place = {text: number for number, text in enumerate(self.documents)}
        self._relevant = [place[question.answer] for question in self._questions]

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> int:
        for template in self._templates:
            template.check(tokenizer, self.length)
        self._tokenizer = tokenizer
        queries = [question.context for question in self._questions]
        self._tokens = [
            template.tokens(tokenizer, text, self.length)
            for template, texts in zip(self._templates, (queries, self.documents), strict=True)
            for text in texts
        ]
        self.note_longest(map(len, self._tokens), self._name_item)
        return len(self._tokens)

    def chunks(self, size: int) -> list[list[int]]:
        lengths = list(map(len, self._tokens))
        return group_by_length(lengths, self.tokens, most=self.batch_size)

    def _name_item(self, item: int) -> str:
        """Name a query by its row, and a document by the first row that has it."""
        if (place := item - len(self._questions)) < 0:
            return self.name_row(item, self._questions[item].id)
        text = self.documents[place]
        row = next(n for n, question in enumerate(self._questions) if text in question.choices)
        return f"the choice {text!r:.40} of {self.name_row(row, self._questions[row].id)}"

    def report(self, table: ItemTable) -> TaskReport:
        columns: dict[str, Tensor] = {}
        first: dict[str, list[int]] = {}
        for name in table.models("embedding"):
            values, first[name] = self._measure(table[f"{name}/embedding"])
            columns |= {f"{name}/{metric}": value for metric, value in values.items()}
        values = ItemTable(len(self._questions))
        values.assign(torch.arange(values.size), columns)
        size = len(self.documents)
        details = {
            **self.row_details(self._questions),
            "query_template": self.query_template,
            "document_template": self.document_template,
            **self.embedding_details(),
            "centre": self.centre,
            "documents": size,
            **score_details(self.use, "mrr"),
            "chance_mrr": self._chance().mean().item(),
        }
        metrics = ["mrr", *(f"recall@{k}" for k in self.recall_at), "ndcg@10"]
        results = values.paired_results(self.name, metrics, details)
        answers = "fixed" if Labels(self._questions) else None
        scores = paired_scores(columns, "mrr", self._chance())
        results += retained_results(self.name, scores, details, answers)
        return TaskReport(results, items=self._item_rows(columns, first), scores=scores)

    def _item_rows(
        self, columns: dict[str, Tensor], first: dict[str, list[int]]
    ) -> Iterator[dict[str, Any]]:
        """Yield one row a query and model: the first document, and the rank of the right one."""
        for index, question in enumerate(self._questions):
            for name, documents in first.items():
                row: dict[str, Any] = {"item": index, "id": str(question.id), "model": name}
                row |= {"prompt": question.context, "target": question.answer}
                row["answer"] = self.documents[documents[index]]
                row["rank"] = round(1 / columns[f"{name}/mrr"][index].item())
                for column, values in columns.items():
                    if column.startswith(f"{name}/"):
                        row[column.partition("/")[2]] = values[index].item()
                yield row

    def _chance(self) -> Tensor:
        """Return the expected reciprocal rank without reading the question, (Q,)."""
        size = len(self.documents)
        if labels := Labels(self._questions):
            order = sorted(self.documents, key=labels.answers.count, reverse=True)
            ranks = [order.index(answer) + 1 for answer in labels.answers]
            return 1 / torch.tensor(ranks, dtype=torch.float64)
        mean = sum(1 / rank for rank in range(1, size + 1)) / size
        return torch.full((len(self._questions),), mean, dtype=torch.float64)

    def _measure(self, embeddings: Tensor) -> tuple[dict[str, Tensor], list[int]]:
        """Rank the documents for each query.

        Args:
            embeddings: (Q + N, D), of the queries, then of the documents.

        Returns:
            (Q,) float64 for each metric, and the number of the first document of each query.
        """
        size = len(self.documents)
        queries, documents = embeddings.double().tensor_split([len(self._questions)])
        if self.centre:
            queries, documents = queries - queries.mean(0), documents - documents.mean(0)
        depth = max(10, size, *self.recall_at)
        columns: dict[str, list[float]] = {}
        first: list[int] = []
        for numbers in torch.arange(len(queries)).split(max(1, _AT_A_TIME // size)):
            lists = rank_documents(
                queries[numbers],
                lambda: iter([(torch.arange(size), documents)]),
                depth=depth,
                centre=False,  # done above, by the mean of all queries
            )
            for number, ranked in zip(numbers.tolist(), lists.tolist(), strict=True):
                first.append(ranked[0])
                grades = {self._relevant[number]: 1}
                found = list_metrics(
                    ranked, grades, depth=depth, recall_at=self.recall_at, mrr_at=depth
                )
                found["mrr"] = found[f"mrr@{depth}"]  # of the whole list
                for metric, value in found.items():
                    columns.setdefault(metric, []).append(value)
        values = {name: torch.tensor(own, dtype=torch.float64) for name, own in columns.items()}
        return values, first
