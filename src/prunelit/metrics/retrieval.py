"""The best documents of every query, while the corpus goes by in chunks, and how good they are."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

# Scores that are held at a time, float64: 32 MB, and some times that while they are sorted.
_AT_A_TIME = 1 << 22

Chunks = Callable[[], Iterator[tuple[Tensor, Tensor]]]


class RankedLists:
    """The `depth` best documents of each query among those that were seen so far.

    Of equal scores the one seen earlier is the better.

    Args:
        queries: Q.
        depth: length of a list.
    """

    def __init__(self, queries: int, depth: int) -> None:
        self._depth = depth
        self._scores = torch.zeros(queries, 0, dtype=torch.float64)
        self.documents = torch.zeros(queries, 0, dtype=torch.int64)

    def update(self, scores: Tensor, documents: Tensor) -> None:
        """Take in the next documents.

        Args:
            scores: (Q, C) float64, higher is better.
            documents: (C,) their numbers.
        """
        scores = torch.cat([self._scores, scores], 1)
        numbers = torch.cat([self.documents, documents.expand(len(scores), -1)], 1)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : self._depth]
        self._scores, self.documents = scores.gather(1, order), numbers.gather(1, order)


def rank_documents(
    queries: Tensor,
    chunks: Chunks,
    *,
    depth: int,
    centre: bool,
    excluded: Sequence[int] | None = None,
) -> Tensor:
    """The best documents of each query by cosine, the best first.

    Holds the queries, their lists and one chunk: memory grows with queries times `depth` and never
    with queries times documents.

    Args:
        queries: (Q, D) embeddings.
        chunks: gives the corpus from its beginning, each chunk with the numbers (C,) and the
            embeddings (C, D) of its documents. With `centre` it is read twice.
        depth: length of a list; shorter where there are fewer documents.
        centre: subtract the mean query from each query and the mean document from each document.
        excluded: for each query the one document that is not listed, or -1.

    Returns:
        (Q, L) int64, document numbers, L the smaller of `depth` and their number; -1 in the place
        of an excluded one, which is the last.
    """
    queries = queries.double()
    mean = torch.zeros(queries.shape[1], dtype=torch.float64)
    if centre:
        queries = queries - queries.mean(0)
        total = 0
        for numbers, embeddings in chunks():
            mean += embeddings.double().sum(0)
            total += len(numbers)
        mean /= total
    queries = normalize(queries, dim=1)
    out = torch.full((len(queries),), -1) if excluded is None else torch.tensor(excluded)
    slices = [
        (part, RankedLists(len(part), depth))
        for part in torch.arange(len(queries)).split(max(1, _AT_A_TIME // (2 * depth)))
    ]
    for numbers, embeddings in _wider(chunks(), depth):
        embeddings = normalize(embeddings.double() - mean, dim=1)
        for part, lists in slices:
            scores = queries[part] @ embeddings.T
            scores[out[part, None] == numbers] = -torch.inf
            lists.update(scores, numbers)
    ranked = torch.cat([lists.documents for _, lists in slices])
    return ranked.masked_fill(ranked == out[:, None], -1)


def list_metrics(
    ranked: Sequence[int],
    grades: Mapping[int, int],
    *,
    depth: int,
    recall_at: Sequence[int],
    missing_grades: Sequence[int] = (),
) -> dict[str, float]:
    """What trec_eval says of one list, by torchmetrics.

    `map@<depth>` is the mean precision at the relevant documents, 0 for those that are not among
    the first `depth`: the whole MAP where the list holds every document.

    Args:
        ranked: documents, the best first, at most `depth`.
        grades: of every relevant document, at least 1.
        depth: at least 10 and at least the largest of `recall_at`.
        recall_at: where recall is taken.
        missing_grades: grades of relevant documents that no list can hold.
    """
    # The rest stands behind `depth`: it is not found, but counts for the best possible list.
    target = torch.zeros(depth + len(grades) + len(missing_grades), dtype=torch.int64)
    target[: len(ranked)] = torch.tensor([grades.get(document, 0) for document in ranked])
    found = int((target > 0).sum())
    rest = [grade for document, grade in grades.items() if document not in set(ranked)]
    rest += missing_grades
    target[depth : depth + len(rest)] = torch.tensor(rest, dtype=torch.int64)
    # torchmetrics gives documents with a score of 0 or less no credit: ranks from the end do it.
    scores = torch.arange(len(target), 0, -1, dtype=torch.float32)
    relevant = target > 0
    values = {"ndcg@10": retrieval_normalized_dcg(scores, target, top_k=10)}
    for k in recall_at:
        values[f"recall@{k}"] = retrieval_recall(scores, relevant, top_k=k)
    values["mrr@10"] = retrieval_reciprocal_rank(scores, relevant, top_k=10)
    # torchmetrics divides by the relevant documents that were found, trec_eval by all of them.
    share = found / (found + len(rest))
    values[f"map@{depth}"] = share * retrieval_average_precision(scores, relevant, top_k=depth)
    return {metric: float(value) for metric, value in values.items()}


def collection_metrics(
    lists: Mapping[str, Tensor],
    grades: Sequence[Mapping[int, int]],
    *,
    depth: int,
    recall_at: Sequence[int],
    missing_grades: Sequence[Sequence[int]],
) -> dict[str, Tensor]:
    """Every query's `list_metrics` for each model and, of two, their `list_agreement`.

    Args:
        lists: for each model (Q, L), as `rank_documents` gives them.
        grades: for each query, see `list_metrics`.
        depth: see there.
        recall_at: see there.
        missing_grades: for each query, see there.

    Returns:
        (Q,) float64 for each `<model>/<metric>` and each quantity of both models.
    """
    columns: dict[str, list[float]] = {}
    for index, (own, others) in enumerate(zip(grades, missing_grades, strict=True)):
        rows = {name: [d for d in rows[index].tolist() if d >= 0] for name, rows in lists.items()}
        found: dict[str, float] = {}
        for name, row in rows.items():
            values = list_metrics(row, own, depth=depth, recall_at=recall_at, missing_grades=others)
            found |= {f"{name}/{metric}": value for metric, value in values.items()}
        if len(rows) == 2:
            found |= list_agreement(*rows.values())
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
    return {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}


def chance_ndcg(grades: Sequence[int], found: int, documents: int) -> float:
    """Expected nDCG@10 of a random order.

    Args:
        grades: of every relevant document.
        found: sum of the grades of those that a list can hold.
        documents: N, all that there are.
    """
    discounts = [1 / math.log2(place + 2) for place in range(10)]
    best = sorted(grades, reverse=True)
    ideal = sum(grade * discount for grade, discount in zip(best, discounts, strict=False))
    return found / documents * sum(discounts[:documents]) / ideal


def list_agreement(one: Sequence[int], other: Sequence[int]) -> dict[str, float]:
    """How alike two lists of one query are.

    Args:
        one: documents, the best first, without repetition.
        other: likewise, of the same length.

    Returns:
        `rank_correlation`: Spearman's over all documents that are in either list, those that a list
        lacks standing side by side behind its last one; `top10_overlap`: the share of the first ten
        (or of all, if there are fewer) that are among the other's first ten.
    """
    documents = list(dict.fromkeys([*one, *other]))
    places = [{document: place for place, document in enumerate(row)} for row in (one, other)]
    first, second = (
        [place.get(document, len(place)) for document in documents] for place in places
    )
    correlation: Any = spearmanr(first, second)
    top = min(10, len(one))
    return {
        "rank_correlation": float(correlation.statistic),
        "top10_overlap": len(set(one[:top]) & set(other[:top])) / top,
    }


def _wider(chunks: Iterable[tuple[Tensor, Tensor]], least: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same documents in chunks of at least `least`, so that lists are sorted less often."""
    held: list[tuple[Tensor, Tensor]] = []
    for chunk in chunks:
        held.append(chunk)
        if sum(len(numbers) for numbers, _ in held) >= least:
            yield torch.cat([n for n, _ in held]), torch.cat([e for _, e in held])
            held = []
    if held:
        yield torch.cat([n for n, _ in held]), torch.cat([e for _, e in held])
