"""Data sets by their names on the hub: revisions, refusals and the cache."""

import datetime
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import jsonl, parquet
from .server import TOKEN, Hub

Ask = Callable[..., Any]
PARQUET = "data/train-00000-of-00001.parquet"


def texts(*words: str) -> list[dict[str, Any]]:
    return [{"text": word, "number": number} for number, word in enumerate(words)]


@pytest.fixture
def commits(hub: Hub) -> dict[str, str]:
    """Two states of `tiny/words`: the branch `main` and the tag `v1`."""
    repository = hub.add("datasets", "tiny/words")
    old = repository.commit({PARQUET: parquet(texts("old", "older"))}, "v1")
    new = {PARQUET: parquet(texts("new", "newer")), "README.md": b"---\nlicense: mit\n---\n"}
    return {"v1": old, "main": repository.commit(new, "main")}


def words(ask: Ask, path: str, **options: Any) -> list[str]:
    found = ask("rows", path, ["text"], **options)
    assert found.status == 0, found.err
    return [row["text"] for row in found.value]


def refused(ask: Ask, path: str, **options: Any) -> str:
    sentence = ask("rows", path, ["text"], **options).sentence
    assert sentence.startswith(f"No rows could be read from {path!r}")
    return sentence


def test_a_revision_gives_its_own_rows(ask: Ask, commits: dict[str, str]) -> None:
    assert words(ask, "tiny/words") == ["new", "newer"]
    assert words(ask, "tiny/words@v1") == ["old", "older"]
    assert words(ask, f"tiny/words@{commits['v1']}", limit=1) == ["old"]
    assert words(ask, "tiny/words@main", split="train[1:]") == ["newer"]


@pytest.mark.full
def test_a_branch_that_moves_is_read_anew(ask: Ask, hub: Hub, commits: dict[str, str]) -> None:
    assert words(ask, "tiny/words") == ["new", "newer"]
    files = {PARQUET: parquet(texts("newest"))}
    hub.repositories["datasets", "tiny/words"].commit(files, "main")
    assert words(ask, "tiny/words") == ["newest"]


def test_offline_every_revision_of_the_cache_gives_its_own_rows(
    ask: Ask, hub: Hub, commits: dict[str, str]
) -> None:
    for path in ("tiny/words", "tiny/words@v1"):  # the newest copy is that of v1
        words(ask, path)
    hub.asked.clear()
    assert words(ask, "tiny/words", offline=True) == ["new", "newer"]
    assert words(ask, "tiny/words@v1", offline=True) == ["old", "older"]
    assert hub.asked == []
    sentence = refused(ask, "tiny/words@v2", offline=True)
    assert "HF_HUB_OFFLINE is set, and it is not in the cache at the revision 'v2'; " in sentence


def test_offline_a_copy_of_another_commit_is_not_taken(
    ask: Ask, hub: Hub, commits: dict[str, str]
) -> None:
    words(ask, "tiny/words@v1")
    ask("commit", "tiny/words")  # the commit is known, its rows are not
    assert "HF_HUB_OFFLINE is set, and it is not in the cache" in (
        refused(ask, "tiny/words", offline=True)
    )


def test_a_hub_without_an_answer_is_said_and_the_commit_named(
    ask: Ask, hub: Hub, commits: dict[str, str]
) -> None:
    words(ask, "tiny/words")
    words(ask, "tiny/words@v1")
    hub.silent = True
    found = ask("rows", "tiny/words", ["text"])
    assert [row["text"] for row in found.value] == ["new", "newer"]
    (said,) = [line for line in found.err.splitlines() if "gives no answer" in line]
    assert f"'tiny/words' is read from the cache, as it was at the commit {commits['main']}" in said


def test_a_missing_data_set(ask: Ask, hub: Hub) -> None:
    sentence = refused(ask, "tiny/wrods")
    assert "as a data set on the hub: there is no data set of this name, or it is " in sentence
    assert f"{hub.address}/datasets/tiny/wrods" in sentence


def test_a_missing_revision_is_named(ask: Ask, hub: Hub, commits: dict[str, str]) -> None:
    for revision in ("v9", "0" * 40):
        sentence = refused(ask, f"tiny/words@{revision}")
        assert f"it has no revision {revision!r}; name a branch, tag or commit that " in sentence


def test_a_gated_data_set(ask: Ask, hub: Hub) -> None:
    repository = hub.add("datasets", "tiny/gated", gated=True)
    repository.commit({PARQUET: parquet(texts("secret"))}, "main")
    for token in ("", "hf_another"):
        sentence = refused(ask, "tiny/gated", token=token)
        assert f"gated; accept its terms at {hub.address}/datasets/tiny/gated, then " in sentence
    assert words(ask, "tiny/gated", token=TOKEN) == ["secret"]


def test_offline_with_an_empty_cache(ask: Ask, hub: Hub) -> None:
    sentence = refused(ask, "tiny/words", offline=True)
    assert "HF_HUB_OFFLINE is set, and it is not in the cache; unset it for one run, " in sentence
    assert hub.asked == []


def test_the_variable_of_datasets_alone(ask: Ask, hub: Hub, commits: dict[str, str]) -> None:
    sentence = refused(ask, "tiny/words", offline="datasets")
    assert "HF_DATASETS_OFFLINE is set, and it is not in the cache; unset it for one" in sentence
    assert sentence.endswith("or name a local file.")
    words(ask, "tiny/words")
    assert words(ask, "tiny/words", offline="datasets") == ["new", "newer"]


def test_a_cut_connection_loses_nothing(ask: Ask, hub: Hub, commits: dict[str, str]) -> None:
    hub.cut = ".parquet"
    sentence = refused(ask, "tiny/words")
    assert "the connection broke off (" in sentence
    assert sentence.endswith("run again, complete files are kept.")
    hub.cut = None
    assert words(ask, "tiny/words") == ["new", "newer"]


def test_a_wrong_configuration_and_a_wrong_split_are_named(
    ask: Ask, hub: Hub, commits: dict[str, str]
) -> None:
    assert "'easy' not found. Available: ['default']" in refused(ask, "tiny/words", name="easy")
    assert "Should be one of ['train']" in refused(ask, "tiny/words", split="test")


def test_texts_that_look_like_dates_are_refused_where_the_library_makes_times_of_them(
    ask: Ask, hub: Hub
) -> None:
    choices = [{"text": "when", "choices": [f"2024-01-0{n}", "1999-12-31"]} for n in (1, 2)]
    hub.add("datasets", "tiny/dates").commit({"train.jsonl": jsonl(choices)}, "main")
    for offline in (False, True):
        found = ask("rows", "tiny/dates", ["text", "choices"], offline=offline)
        assert found.sentence.startswith("`choices` of 'tiny/dates' holds texts that look like ")
        assert "run `hf download tiny/dates --repo-type dataset` and give the file" in found.value
    assert words(ask, "tiny/dates") == ["when", "when"]


@pytest.mark.full
def test_texts_in_parquet_stay_texts(ask: Ask, hub: Hub) -> None:
    rows = [{"text": "2024-01-01", "day": datetime.date(2024, 1, 1)}]
    hub.add("datasets", "tiny/days").commit({PARQUET: parquet(rows)}, "main")
    assert words(ask, "tiny/days") == ["2024-01-01"]
