"""Ranked lists compared with brute force, their metrics with sums by hand and pytrec_eval."""

import importlib.util
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from prunelit.metrics import retrieval
from prunelit.metrics.retrieval import (
    RankedLists,
    chance_ndcg,
    list_agreement,
    list_metrics,
    rank_documents,
)

QUERIES, DOCUMENTS, WIDTH = 7, 53, 6


@pytest.fixture
def vectors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(QUERIES, WIDTH, generator=generator) + 1
    return queries, torch.randn(DOCUMENTS, WIDTH, generator=generator) + 2


def brute_force(queries: Tensor, documents: Tensor, centre: bool) -> np.ndarray:
    """(Q, N) document numbers, the best first."""
    q, d = queries.double().numpy(), documents.double().numpy()
    if centre:
        q, d = q - q.mean(0), d - d.mean(0)
    cosines = q @ d.T / np.outer(np.linalg.norm(q, axis=1), np.linalg.norm(d, axis=1))
    return np.argsort(-cosines, axis=1)


def chunks_of(documents: Tensor, sizes: list[int], order: Tensor | None = None):
    order = torch.arange(len(documents)) if order is None else order

    def chunks() -> Iterator[tuple[Tensor, Tensor]]:
        for numbers in order.split(sizes):
            yield numbers, documents[numbers]

    return chunks


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("depth", [10, 53, 100])
@pytest.mark.parametrize("sizes", [[53], [1] * 53, [20, 3, 30]])
def test_lists_are_those_of_brute_force(
    vectors: tuple[Tensor, Tensor], centre: bool, depth: int, sizes: list[int]
) -> None:
    queries, documents = vectors
    found = rank_documents(queries, chunks_of(documents, sizes), depth=depth, centre=centre)
    np.testing.assert_array_equal(found.numpy(), brute_force(*vectors, centre)[:, :depth])


def test_documents_may_come_in_any_order(vectors: tuple[Tensor, Tensor]) -> None:
    queries, documents = vectors
    order = torch.randperm(DOCUMENTS, generator=torch.Generator().manual_seed(3))
    found = rank_documents(
        queries, chunks_of(documents, [9] * 5 + [8], order), depth=12, centre=True
    )
    np.testing.assert_array_equal(found.numpy(), brute_force(*vectors, True)[:, :12])


def test_slices_of_queries_change_nothing(
    vectors: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, documents = vectors
    whole = rank_documents(queries, chunks_of(documents, [53]), depth=10, centre=True)
    monkeypatch.setattr(retrieval, "_AT_A_TIME", 40)  # two queries
    assert torch.equal(
        rank_documents(queries, chunks_of(documents, [53]), depth=10, centre=True), whole
    )


def test_memory_does_not_grow_with_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    widest = 0
    update = RankedLists.update

    def watched(self: RankedLists, scores: Tensor, documents: Tensor) -> None:
        nonlocal widest
        widest = max(widest, scores.shape[1])
        update(self, scores, documents)
        assert self.documents.shape[1] <= 10

    monkeypatch.setattr(RankedLists, "update", watched)
    documents = torch.randn(2000, 4, generator=torch.Generator().manual_seed(1))
    rank_documents(documents[:3], chunks_of(documents, [4] * 500), depth=10, centre=True)
    assert widest == 12


def test_an_excluded_document_is_not_listed(vectors: tuple[Tensor, Tensor]) -> None:
    queries, documents = vectors
    expected = brute_force(*vectors, False)
    excluded = [int(row[0]) for row in expected]
    excluded[2] = -1
    for depth in (10, 53):
        found = rank_documents(
            queries, chunks_of(documents, [53]), depth=depth, centre=False, excluded=excluded
        ).tolist()
        for index, row in enumerate(found):
            own = [number for number in row if number >= 0]
            assert own == [d for d in expected[index].tolist() if d != excluded[index]][:depth]


def test_equal_scores_keep_the_order_in_which_they_came() -> None:
    lists = RankedLists(1, 3)
    lists.update(torch.tensor([[1.0, 2.0]]).double(), torch.tensor([8, 9]))
    lists.update(torch.tensor([[2.0, 2.0, 1.0]]).double(), torch.tensor([1, 2, 3]))
    assert lists.documents.tolist() == [[9, 1, 2]]


def test_metrics_by_hand() -> None:
    # Ranks 2 and 4 of five are relevant, with grades 3 and 1. A third document, of grade 2, is not
    # in the list.
    found = list_metrics([7, 1, 8, 2, 9], {1: 3, 2: 1, 5: 2}, depth=10, recall_at=[2, 10])
    gained = 3 / math.log2(3) + 1 / math.log2(5)
    best = 3 + 2 / math.log2(3) + 1 / math.log2(4)
    assert found == pytest.approx(
        {
            "ndcg@10": gained / best,
            "recall@2": 1 / 3,
            "recall@10": 2 / 3,
            "mrr@10": 1 / 2,
            "map@10": (1 / 2 + 2 / 4) / 3,
        },
        rel=1e-6,
    )


def test_a_relevant_document_that_the_corpus_lacks_is_never_found() -> None:
    # Appended to the list, it would have rank 6, within the first ten.
    found = list_metrics([7, 1, 8, 2, 9], {1: 1}, depth=10, recall_at=[10], missing_grades=[1])
    assert found["recall@10"] == 0.5
    assert found["map@10"] == pytest.approx(1 / 4)
    assert found["ndcg@10"] == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    nothing = list_metrics([7, 8], {}, depth=10, recall_at=[10], missing_grades=[2])
    assert set(nothing.values()) == {0.0}


def test_mrr_stops_at_ten_and_map_at_its_depth() -> None:
    row = list(range(20))
    found = list_metrics(row, {10: 1}, depth=20, recall_at=[10, 20])
    assert found["mrr@10"] == found["recall@10"] == found["ndcg@10"] == 0
    assert found["recall@20"] == 1
    assert found["map@20"] == pytest.approx(1 / 11)
    assert list_metrics(row[:10], {10: 1}, depth=10, recall_at=[10])["map@10"] == 0


def random_case(rng: np.random.Generator) -> tuple[list[int], dict[int, int]]:
    ranking = rng.permutation(60).tolist()
    relevant = rng.choice(80, size=rng.integers(1, 30), replace=False)  # some are not in the corpus
    return ranking, {int(d): int(rng.integers(1, 4)) for d in relevant}


def by_hand(ranking: list[int], grades: dict[int, int], depth: int) -> dict[str, float]:
    """The metrics of trec_eval from their definitions, in NumPy."""
    gains = np.array([grades.get(d, 0) for d in ranking[:depth]])
    discounts = 1 / np.log2(np.arange(10) + 2)
    ideal = np.sort(list(grades.values()))[::-1][:10]
    hits = gains > 0
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    first = np.flatnonzero(hits[:10])
    return {
        "ndcg@10": (gains[:10] * discounts).sum() / (ideal * discounts[: len(ideal)]).sum(),
        "recall@5": hits[:5].sum() / len(grades),
        "recall@25": hits[:25].sum() / len(grades),
        "mrr@10": 1 / (first[0] + 1) if len(first) else 0.0,
        f"map@{depth}": precision[hits].sum() / len(grades),
    }


@pytest.mark.parametrize("depth", [25, 60])
def test_metrics_are_those_of_numpy(depth: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        ranking, grades = random_case(rng)
        inside = {d: g for d, g in grades.items() if d < 60}
        missing = [g for d, g in grades.items() if d >= 60]
        found = list_metrics(
            ranking[:depth], inside, depth=depth, recall_at=[5, 25], missing_grades=missing
        )
        assert found == pytest.approx(by_hand(ranking, grades, depth), rel=1e-5, abs=1e-7)


def test_the_reciprocal_rank_of_a_longer_list() -> None:
    ranking = list(range(40))
    found = list_metrics(ranking, {19: 1}, depth=40, recall_at=[10], mrr_at=40)
    assert found["mrr@40"] == pytest.approx(1 / 20)
    assert "mrr@10" not in found
    assert list_metrics(ranking, {19: 1}, depth=40, recall_at=[10])["mrr@10"] == 0


@pytest.mark.skipif(not importlib.util.find_spec("pytrec_eval"), reason="no pytrec_eval")
@pytest.mark.parametrize("depth", [25, 60])
def test_metrics_are_those_of_pytrec_eval(depth: int) -> None:
    import pytrec_eval

    rng = np.random.default_rng(1)
    names = {"ndcg_cut_10": "ndcg@10", "recall_5": "recall@5", "recall_25": "recall@25"}
    names |= {f"map_cut_{depth}": f"map@{depth}", "recip_rank": "mrr@10"}
    measures = {"ndcg_cut.10", "recall.5,25", f"map_cut.{depth}", "recip_rank"}
    for _ in range(50):
        ranking, grades = random_case(rng)
        evaluator = pytrec_eval.RelevanceEvaluator(
            {"q": {f"d{d}": g for d, g in grades.items()}}, measures
        )
        run = {f"d{d}": float(len(ranking) - place) for place, d in enumerate(ranking)}
        expected = evaluator.evaluate({"q": run})["q"]
        if expected["recip_rank"] < 0.1:  # trec_eval has no cutoff for it
            expected["recip_rank"] = 0.0
        found = list_metrics(
            ranking[:depth],
            {d: g for d, g in grades.items() if d < 60},
            depth=depth,
            recall_at=[5, 25],
            missing_grades=[g for d, g in grades.items() if d >= 60],
        )
        for theirs, own in names.items():
            assert found[own] == pytest.approx(expected[theirs], rel=1e-5, abs=1e-6), own


def test_agreement_of_whole_lists_is_spearman_of_their_ranks() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.permutation(40).tolist(), rng.permutation(40).tolist()
    places = [[row.index(d) for d in range(40)] for row in (one, other)]
    found = list_agreement(one, other)
    assert found["rank_correlation"] == pytest.approx(spearmanr(*places).statistic, rel=1e-12)
    assert found["top10_overlap"] == len(set(one[:10]) & set(other[:10])) / 10
    assert list_agreement(one, one) == pytest.approx({"rank_correlation": 1, "top10_overlap": 1})
    assert list_agreement(one, one[::-1])["rank_correlation"] == pytest.approx(-1)


def test_agreement_of_cut_lists() -> None:
    # Union 1 2 3 4: ranks 0 1 2, and 3 for a document that is not listed.
    found = list_agreement([1, 2, 3], [2, 1, 4])
    expected = spearmanr([0, 1, 2, 3], [1, 0, 3, 2]).statistic
    assert found == pytest.approx({"rank_correlation": expected, "top10_overlap": 2 / 3})
    assert list_agreement([1, 2, 3], [4, 5, 6])["rank_correlation"] < 0


def test_chance_is_the_mean_over_random_orders() -> None:
    rng = np.random.default_rng(3)
    grades = {0: 3, 4: 1, 9: 1}
    drawn = [
        list_metrics(rng.permutation(30).tolist(), grades, depth=30, recall_at=[10])["ndcg@10"]
        for _ in range(3000)
    ]
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - chance_ndcg([3, 1, 1], 5, 30)) < 4 * error
    # Fewer documents than `depth`: all are found.
    assert chance_ndcg([1], 1, 1) == 1
