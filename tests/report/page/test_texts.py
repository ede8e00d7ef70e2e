import pytest

from prunelit.errors import visible
from prunelit.report.page.texts import (
    cut,
    first_difference,
    mark_difference,
    shorten_alike,
    shorten_middle,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext é 東京 नमस्ते", "plain\n\ttext é 東京 नमस्ते"),
        ("\x1b[31mred", "[U+001B][31mred"),
        ("a\u202eb\u2066c\u200f", "a[U+202E]b[U+2066]c[U+200F]"),
        ("a\u2028b\x00c\x85", "a[U+2028]b[U+0000]c[U+0085]"),
        ("tag\U000e0041 bom\ufeff half\ud800", "tag[U+E0041] bom[U+FEFF] half[U+D800]"),
        (
            "👩\u200d💻 \u0645\u06cc\u200c\u062e a\u00a0b",
            "👩\u200d💻 \u0645\u06cc\u200c\u062e a\u00a0b",
        ),
        ("carriage\rreturn", "carriage[U+000D]return"),
    ],
)
def test_hidden_characters_are_numbers(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("dense", "pruned", "marked"),
    [
        ("It is in China.", "It is in Chad.", ("China.", "Chad.")),
        ("Yes", "Yes, but no", ("Yes", "Yes,")),
        ("", "a b", ("", "a")),
        ("same", "same", ("", "")),
        ("one two", "one", ("two", "")),
    ],
)
def test_the_first_word_that_differs(dense: str, pruned: str, marked: tuple[str, str]) -> None:
    pair = mark_difference(dense, pruned)
    assert tuple(parts.marked.strip() for parts in pair) == marked
    assert [p.before + p.marked + p.after for p in pair] == [dense, pruned]


def test_a_long_word_without_spaces_is_marked_at_the_difference() -> None:
    dense, pruned = mark_difference("あ" * 50 + "い" * 50, "あ" * 50 + "う" * 50)
    assert dense.before == "あ" * 50
    assert dense.marked == "い" * 30
    assert pruned.marked == "う" * 30


def test_what_all_prompts_share_is_left_out() -> None:
    prompts = [f"<user>\nWh{end} is it?<end>\n<bot>" for end in ("at", "ere", "o")]
    assert shorten_alike(prompts) == ["What is it?", "Where is it?", "Who is it?"]
    assert shorten_alike(["a"]) == ["a"]
    assert shorten_alike(["a", "a"]) == ["a", "a"]
    assert shorten_alike(["a b", "a b c"]) == ["a b", "a b c"]
    assert shorten_alike(["Question: a\nAnswer:", "Question: b\nAnswer:"]) == ["a", "b"]


def test_a_cut_is_counted() -> None:
    assert cut("abcdef", 4) == "abcd ... (2 more characters)"
    assert cut("abcd", 4) == "abcd"
    assert first_difference("abc", "abd") == 2


def test_a_long_path_keeps_both_ends() -> None:
    path = "/home/someone/" + "deep/" * 30 + "model.gguf"
    short = shorten_middle(path)
    assert len(short) == 72
    assert short.startswith("/home/someone/")
    assert short.endswith("/model.gguf")
    assert shorten_middle("org/model") == "org/model"
