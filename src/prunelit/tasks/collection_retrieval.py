"""Retrieval from a collection of documents, with the model's own embeddings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunelit.data.beir import load_collection
from prunelit.data.tokens import pad, pad_token
from prunelit.errors import InputError
from prunelit.metrics.retrieval import chance_ndcg, collection_metrics, rank_documents
from prunelit.metrics.spaces.embedding import embedding_cosine
from prunelit.models.inference.embedding import embed
from prunelit.models.inference.embedding_cache import (
    EmbeddingCache,
    Fingerprints,
    content_key,
    default_folder,
)
from prunelit.models.model_pair import ModelPair
from prunelit.report.task_report import TaskReport
from prunelit.tasks.embedding_task import EmbeddingTask, same_width
from prunelit.tasks.item_table import ItemTable
from prunelit.tasks.prompting.text_template import TextTemplate
from prunelit.tasks.retention import paired_scores, retained_results, score_details
from prunelit.tasks.row_task import RowTask


@dataclass
class _Ranking:
    """Ranked lists of all queries, and their metrics.

    Args:
        lists: for each model (Q, L) document numbers, the best first, -1 at the end of a shorter
            list.
        metrics: one slot per query.
    """

    lists: dict[str, Tensor]
    metrics: ItemTable


class CollectionRetrieval(RowTask, EmbeddingTask):
    """Rank the documents of a BEIR collection for each query by the cosine of embeddings.

    Items are queries and documents. `step` embeds a batch and stores the vectors in a cache on
    disk. The table holds the names of the files, and the cosine of the dense and the pruned vector.
    After the last batch every rank reads the corpus from the cache, batch by batch, and keeps the
    best `depth` documents of each query. The sums are the same, in the same order, on any number of
    ranks.

    Costs:

    * disk: one float32 vector per text and model. It is used again by the next run with the same
      model and batches;
    * memory: the texts, the query vectors, and queries times `depth`, but not queries times
      documents;
    * compute, on every rank: one product of queries and corpus. With `centre` the corpus is read
      twice.

    On several machines `cache` must be a folder that all of them see.

    Metrics of a model are those of trec_eval: `ndcg@10` with linear gains, `recall@k`, `mrr@10` and
    `map@d`, in which a relevant document after the first d counts as not found. If d is the size of
    the corpus, it is MAP. Documents with equal scores keep the order of the corpus; trec_eval sorts
    them by their ids, the last id first. `chance_ndcg@10` is that of a random order.

    Metrics of both models: `query_cosine` and `document_cosine` of the two vectors of a text, not
    centred; `rank_correlation` (Spearman) and `top10_overlap` of the two lists.

    Args:
        path: folder or data set on the hub, see `prunelit.data.beir.load_collection`.
        split: of the judgements.
        qrels: file or data set with the judgements, if they are not in `path`.
        query_template: with the field `{text}`.
        document_template: with the field `{text}`, which is title and text.
        centre: subtract the mean query from each query and the mean document from each document.
        recall_at: every k of `recall@k`.
        depth: d, length of a list, at least 10 and at least the largest of `recall_at`.
        exclude_same_id: leave out the document that has the id of the query (ArguAna, Quora).
        limit: number of queries; None reads all.
        corpus_limit: number of documents, which always include the relevant ones; None reads all.
        cache: folder of the embeddings; None is `embeddings` in the cache directory.
        kwargs: options of `EmbeddingTask`.

    Example:
        >>> from prunelit.tasks import CollectionRetrieval
        >>> task = CollectionRetrieval("scifact", recall_at=[10], depth=100, pooling="mean")
        >>> task.split, task.length
        ('test', 256)
    """

    use = "retrieval"

    def __init__(
        self,
        path: str,
        split: str = "test",
        qrels: str | None = None,
        query_template: str = 'This query: "{text}" means in one word: "',
        document_template: str = 'This text: "{text}" means in one word: "',
        length: int | None = 256,
        centre: bool = True,
        recall_at: Sequence[int] = (10, 100),
        depth: int = 1000,
        exclude_same_id: bool = False,
        corpus_limit: int | None = None,
        cache: str | None = None,
        batch_size: int = 32,
        name: str = "collection_retrieval",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            path=path, split=split, length=length, batch_size=batch_size, name=name, **kwargs
        )
        if min(recall_at, default=1) < 1:
            raise InputError(f"Expected `recall_at` of at least 1 but got {list(recall_at)}.")
        if depth < (least := max([10, *recall_at])):
            raise InputError(
                f"Expected `depth` of at least {least}, which the metrics need, but got {depth}."
            )
        self.qrels = qrels
        self.query_template = query_template
        self.document_template = document_template
        self.centre = centre
        self.recall_at = list(recall_at)
        self.depth = depth
        self.exclude_same_id = exclude_same_id
        self.corpus_limit = corpus_limit
        self.cache = cache

    def read(self) -> None:
        self._templates = TextTemplate(self.query_template), TextTemplate(self.document_template)
        self._collection = load_collection(
            self.pinned,
            split=self.split,
            qrels=self.qrels,
            limit=self.limit,
            corpus_limit=self.corpus_limit,
        )
        self._texts = [*self._collection.queries, *self._collection.documents]
        self._queries = len(self._collection.queries)
        if len(self._collection.documents) < 3:
            raise InputError(
                f"Expected at least 3 documents to rank in {self.path!r} but got "
                f"{len(self._collection.documents)}: add some, or raise `corpus_limit`."
            )
        place = {name: number for number, name in enumerate(self._collection.document_ids)}
        self._excluded = [
            place.get(name, -1) if self.exclude_same_id else -1
            for name in self._collection.query_ids
        ]

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> int:
        # Texts are tokenised batch by batch, on the rank that reads them.
        for template in self._templates:
            template.check(tokenizer, self.length)
        self._tokenizer = tokenizer
        self._cache = EmbeddingCache(self.cache or default_folder())
        if self.length is None:
            every = range(len(self._texts))
            self.note_longest((len(self._tokenise(item)) for item in every), self._name_item)
        else:
            self.longest = self.length
        return len(self._texts)

    def _name_item(self, item: int) -> str:
        if item < self._queries:
            return f"the query {self._collection.query_ids[item]!r} of {self.path!r}"
        document = self._collection.document_ids[item - self._queries]
        return f"the document {document!r} of {self.path!r}"

    def chunks(self, size: int) -> list[list[int]]:
        """Group queries, then documents, each by similar length; no batch has both."""
        chunks = []
        for items in (range(self._queries), range(self._queries, size)):
            order = sorted(items, key=lambda item: -len(self._texts[item]))
            chunks += [
                order[start : start + self.batch_size]
                for start in range(0, len(order), self.batch_size)
            ]
        return chunks

    def common(self) -> dict[str, Any]:
        return {"fingerprints": Fingerprints()}

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        tokens = [self._tokenise(item) for item in indices]
        return dict(pad(tokens, pad_token(self._tokenizer)))

    def step(self, pair: ModelPair, batch: dict[str, Any]) -> dict[str, Tensor]:
        fingerprints: Fingerprints = batch["fingerprints"]
        ids, mask = batch["input_ids"], batch["attention_mask"]
        values: dict[str, Tensor] = {}
        vectors = []
        for name, model in pair.models().items():
            options = self.embed_options(pair, name)
            key = content_key(fingerprints.get(model), [ids, mask], options)
            compute = partial(embed, model, ids, mask, **options)
            vectors.append(self._cache.fetch(key, len(ids), compute, model).double())
            values[f"{name}/file"] = _numbers(key).expand(len(ids), -1)
        if same_width(vectors):
            values["cosine"] = embedding_cosine(*vectors)
        return values

    def report(self, table: ItemTable) -> TaskReport:
        ranking, details = self._measure(table), self.details()
        metrics = ranking.metrics
        names = ["ndcg@10", *(f"recall@{k}" for k in self.recall_at), "mrr@10", f"map@{self.depth}"]
        results = metrics.paired_results(self.name, names, details)
        if "cosine" in table:
            queries, documents = table["cosine"].tensor_split([self._queries])
            for name, values in (("query_cosine", queries), ("document_cosine", documents)):
                texts = ItemTable(len(values))
                texts.assign(torch.arange(len(values)), {name: values})
                results += texts.pair_results(self.name, [name], details)
        columns = {name: metrics[name] for name in metrics.columns()}
        scores = paired_scores(columns, "ndcg@10", details["chance_ndcg@10"])
        results += retained_results(self.name, scores, details)
        results += metrics.pair_results(self.name, ["rank_correlation", "top10_overlap"], details)
        return TaskReport(results, items=self._item_rows(ranking), scores=scores)

    def _item_rows(self, ranking: _Ranking) -> Iterator[dict[str, Any]]:
        """One row a query and model: its metrics and the ids of its first ten documents."""
        for index, query in enumerate(self._collection.query_ids):
            for name, lists in ranking.lists.items():
                own = [number for number in lists[index].tolist() if number >= 0]
                row: dict[str, Any] = {"query": query, "model": name}
                row["text"] = self._collection.queries[index]
                row["first"] = [self._collection.document_ids[number] for number in own[:10]]
                for column in ranking.metrics.columns():
                    model, _, metric = column.rpartition("/")
                    if model in ("", name):
                        row[metric] = ranking.metrics[column][index].item()
                yield row

    def details(self) -> dict[str, Any]:
        """Return the options and hashes that two comparable results have in common."""
        grades, missing = self._collection.grades, self._collection.missing_grades
        count = len(self._collection.documents)
        chance = [
            chance_ndcg([*own.values(), *others], sum(own.values()), count)
            for own, others in zip(grades, missing, strict=True)
        ]
        return {
            **self.source_details(),
            "collection_sha256": self._collection.hash(),
            "query_template": self.query_template,
            "document_template": self.document_template,
            **self.embedding_details(),
            "centre": self.centre,
            "exclude_same_id": self.exclude_same_id,
            "documents": count,
            "relevant": sum(map(len, grades)),
            "missing": sum(map(len, missing)),
            **score_details(self.use, "ndcg@10"),
            "chance_ndcg@10": sum(chance) / len(chance),
        }

    def _tokenise(self, item: int) -> list[int]:
        template = self._templates[item >= self._queries]
        return template.tokens(self._tokenizer, self._texts[item], self.length)

    def _measure(self, table: ItemTable) -> _Ranking:
        lists = {name: self._rank(table, name) for name in table.models("file")}
        metrics = ItemTable(self._queries)
        values = collection_metrics(
            lists,
            self._collection.grades,
            depth=self.depth,
            recall_at=self.recall_at,
            missing_grades=self._collection.missing_grades,
        )
        metrics.assign(torch.arange(self._queries), values)
        return _Ranking(lists, metrics)

    def _rank(self, table: ItemTable, name: str) -> Tensor:
        files = table[f"{name}/file"]

        def read(queries: bool) -> Iterator[tuple[Tensor, Tensor]]:
            for chunk in self.chunks(table.size):
                if (chunk[0] < self._queries) == queries:
                    vectors = self._cache.load(files[chunk[0]].numpy().tobytes())
                    yield torch.tensor(chunk) - (0 if queries else self._queries), vectors

        order, vectors = (torch.cat(parts) for parts in zip(*read(True), strict=True))
        return rank_documents(
            vectors[order.argsort()],
            lambda: read(False),
            depth=self.depth,
            centre=self.centre,
            excluded=self._excluded,
        )


def _numbers(key: bytes) -> Tensor:
    """Store 16 bytes as two numbers of a table. Nothing computes with them."""
    return torch.frombuffer(bytearray(key), dtype=torch.int64)
