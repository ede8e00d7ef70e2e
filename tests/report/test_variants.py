"""The table of several prunings."""

import math

from prunelit.report.results import Result
from prunelit.report.variants import (
    Variant,
    main_scores,
    variants_cells,
    variants_numbers,
    variants_table,
)


def variant(name: str, acc: float, sparsity: float = 0.5) -> Variant:
    rows = [
        Result("text", "perplexity", "pruned", 90.0, 6.0, 16),
        Result("mc", "acc", "dense", 0.86, 0.024, 216, {"primary": "acc"}),
        Result("mc", "acc", "pruned", acc, 0.03, 216, {"primary": "acc"}),
        Result("text", "kl_dense_pruned", "pair", 0.8, math.nan, 16),
    ]
    size = round(2_000_000 * (1 - sparsity))
    return Variant(name, rows, {}, sparsity, None, (2_000_000, 8_000_000), (size, 4 * size))


def test_a_row_is_found_by_the_first_model_that_has_one() -> None:
    one = variant("a", 0.6)
    found = one.find("mc", "acc", "pruned", "dense")
    assert found is not None
    assert found.value == 0.6
    pair = one.find("text", "kl_dense_pruned", "pruned", "pair")
    assert pair is not None
    assert pair.value == 0.8
    assert one.find("mc", "mrr", "dense") is None


def test_dense_comes_first_and_main_scores_before_the_rest() -> None:
    several = [variant("a", 0.6), variant("b", 0.7, 0.25)]
    assert main_scores(several) == {("mc", "acc"): False}
    cells = variants_cells(several)
    assert [line["variant"] for line in cells] == ["dense", "a", "b"]
    assert [line["sparsity"] for line in cells] == ["0.0000", "0.5000", "0.2500"]
    assert [line["mc\nacc"] for line in cells] == ["0.86 ± 0.024", "0.6 ± 0.03", "0.7 ± 0.03"]
    assert [line["parameters"] for line in cells] == ["2,000,000", "1,000,000", "1,500,000"]
    assert [line["MiB"] for line in cells] == ["7.6", "3.8", "5.7"]
    assert list(cells[0])[4] == "mc\nacc"
    assert [line["text\nkl_dense_pruned"] for line in cells] == ["", "0.8", "0.8"]
    assert variants_table(several).row_count == 3


def test_numbers_are_in_long_form() -> None:
    numbers = variants_numbers([variant("a", 0.6)])
    places = [k for k, metric in enumerate(numbers["metric"]) if metric == "acc"]
    assert [numbers["variant"][k] for k in places] == ["dense", "a"]
    assert [numbers["parameters"][k] for k in places] == [2_000_000, 1_000_000]
    assert [numbers["bytes"][k] for k in places] == [8_000_000, 4_000_000]
    assert [numbers["value"][k] for k in places] == [0.86, 0.6]
