"""Windows of a text as items."""

import gzip
import json
from pathlib import Path

import pytest
import yaml
from transformers import PreTrainedTokenizerBase

from prunelit import InputError
from prunelit.tasks import Perplexity

CONFIGS = Path(__file__).parents[2] / "configs"


def prepared(tokenizer: PreTrainedTokenizerBase, path: Path, **arguments: object) -> Perplexity:
    task = Perplexity(str(path), **arguments)
    task.read()
    task.prepare(tokenizer)
    return task


def test_windows_are_the_joined_documents_cut_without_overlap(
    material: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    task = Perplexity(str(material / "text.jsonl"), split="train[:2]", length=50)
    task.read()
    assert task.prepare(tokenizer) == 2
    text = (
        "cat sat on a mat while rain fell over the old town and nobody\n\n"
        "sat a while fell the town nobody the sat a while fell the town"
    )
    ids = task.collate([0, 1])["input_ids"]
    assert [tokenizer.decode(row) for row in ids] == [text[:50], text[50:100]]
    assert task.collate([1])["input_ids"].tolist() == ids[1:].tolist()


def test_limit_keeps_the_first_windows(material: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = material / "text.jsonl"
    everything = prepared(tokenizer, path, length=20).collate([0, 1, 2])
    task = Perplexity(str(path), length=20, limit=3)
    task.read()
    assert task.prepare(tokenizer) == 3
    assert task.collate([0, 1, 2])["input_ids"].equal(everything["input_ids"])


def test_details_count_tokens_and_identify_the_text(
    material: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = material / "text.jsonl"
    details = prepared(tokenizer, path, length=20, limit=3).details(19)
    assert details["tokens"] == 3 * 19
    assert details["length"] == 20
    assert (details["path"], details["split"]) == (str(path), "train")
    same = prepared(tokenizer, path, length=30).details(29)
    other = prepared(tokenizer, path, length=20, split="train[1:]").details(19)
    assert details["text_sha256"] == same["text_sha256"] != other["text_sha256"]


def test_every_window_begins_with_bos_and_the_details_say_so(
    material: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = material / "text.jsonl"
    assert prepared(tokenizer, path, length=20).details(19)["bos"] is None
    tokenizer.bos_token = "<end>"
    task = prepared(tokenizer, path, length=20, bos=True)
    assert task.details(19)["bos"] == "<end>"
    ids = task.collate([0, 1])["input_ids"]
    assert ids.shape == (2, 20)
    assert ids[:, 0].tolist() == [0, 0]
    assert tokenizer.decode(ids[:, 1:].flatten()) == "cat sat on a mat while rain fell over "


def test_the_column_can_be_chosen(material: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = material / "questions.jsonl"
    task = prepared(tokenizer, path, column="context", length=10)
    assert tokenizer.decode(task.collate([0])["input_ids"][0]) == "What is th"
    with pytest.raises(InputError, match=r"has no column 'text'"):
        Perplexity(str(path)).read()


def test_too_little_text_says_how_much_there_was(
    material: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(InputError, match=r"one window of 100 tokens .* hold only 61"):
        prepared(tokenizer, material / "text.jsonl", split="train[:1]", length=100)


def test_details_name_the_text_rule_and_wrapped_text_is_read_as_it_is(
    tmp_path: Path, material: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = tmp_path / "book.txt"
    path.write_text("A wrapped\nsentence of a book.\n")
    whole = prepared(tokenizer, path, length=18)
    assert tokenizer.decode(whole.collate([0])["input_ids"][0]) == "A wrapped\nsentence"
    lines = prepared(tokenizer, path, length=18, documents="lines")
    assert tokenizer.decode(lines.collate([0])["input_ids"][0]) == "A wrapped\n\nsentenc"
    rows = prepared(tokenizer, material / "text.jsonl", length=18)
    rules = [task.details(17)["text_rule"] for task in (whole, lines, rows)]
    assert rules == ["whole", "lines", "rows"]


def test_wikitext_has_the_windows_of_the_papers(
    shared: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = shared / "data" / "text" / "wikitext2_test.jsonl.gz"
    given = yaml.safe_load((CONFIGS / "tasks" / "wikitext2.yaml").read_text(encoding="utf-8"))
    options = {name: value for name, value in given["init_args"].items() if name != "path"}
    task = prepared(tokenizer, path, **options, limit=3)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        text = "\n\n".join(json.loads(line)["text"] for line in file)
    ids = tokenizer(text[:10_000], add_special_tokens=False)["input_ids"]
    assert task.windows.flatten().tolist() == ids[: 3 * 2048]
    assert task.details(2047)["subset"] is None  # of a file
