"""Records of variants, and the variants of a folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from prunelit.report.page.record_file import is_recorded
from prunelit.report.page.records import (
    decide_again,
    holds_variants,
    read_all,
    read_record,
    read_records,
    write_record,
)
from prunelit.report.variants import Point, format_variants
from prunelit.report.verdicts import Margins


def names(folder: Path) -> list[str]:
    return [variant.name for variant in read_all(folder)]


def test_a_record_belongs_to_its_results(searched: Path) -> None:
    folder = searched / "wanda_0.1"
    variant = read_record(folder, "key")
    assert variant is not None
    assert variant.point == Point("wanda", "sparsity.ratio", 0.1, "id")
    assert read_record(folder, "other") is None
    write_record(folder, variant, None)  # what the results depend on is not known
    assert read_record(folder, "key") is None
    assert read_record(folder) == variant
    assert is_recorded(folder / "variant.json")
    with (folder / "results.jsonl").open("a") as file:
        file.write("\n")
    assert read_record(folder) is None
    assert not is_recorded(folder / "variant.json")
    assert [one.name for one in read_records(searched)] == ["wanda_0.2", "wanda_0.3"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"key": "key", "results": 1, "variant": "[]"}'])
def test_a_damaged_record_is_none(searched: Path, text: str) -> None:
    (searched / "wanda_0.1" / "variant.json").write_text(text)
    assert read_record(searched / "wanda_0.1") is None
    assert not is_recorded(searched / "wanda_0.1" / "variant.json")


def test_a_variant_with_other_scores_is_measured_again(searched: Path) -> None:
    folder = searched / "wanda_0.1"
    (folder / "scores.parquet").write_bytes(b"damaged")
    assert read_record(folder, "key") is None
    assert not is_recorded(folder / "variant.json")
    (folder / "scores.parquet").unlink()
    assert read_record(folder, "key") is None


def test_other_margins_are_written(searched: Path) -> None:
    folder = searched / "wanda_0.3"
    assert {v.word for v in decide_again(folder, Margins()).verdicts} == {"loses"}
    before = (folder / "verdicts.json").stat().st_mtime_ns
    decide_again(folder, Margins())
    assert (folder / "verdicts.json").stat().st_mtime_ns == before
    decide_again(folder, Margins(0.1))
    assert json.loads((folder / "verdicts.json").read_text())["uses"]["retrieval"] == "keeps"


def test_the_variants_of_the_figures_come_first(searched: Path, make_variant: Any) -> None:
    figures = searched / "figures"
    figures.mkdir()
    records = read_records(searched)
    (figures / "variants.json").write_text(format_variants([records[2], records[0]]))
    assert names(searched) == ["wanda_0.3", "wanda_0.1", "wanda_0.2"]
    make_variant(searched / "other", rows="cd" * 32)  # other questions cannot be compared
    assert names(searched) == ["wanda_0.3", "wanda_0.1", "wanda_0.2"]
    (figures / "variants.json").write_text("damaged")
    assert names(searched)[:3] == ["other"]  # by their names


def test_which_folders_hold_variants(searched: Path, tmp_path: Path) -> None:
    assert holds_variants(searched)
    assert not holds_variants(searched / "wanda_0.1")
    assert not holds_variants(tmp_path)
