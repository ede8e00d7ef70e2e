"""Two tokenizers are the same if every id is the same token."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prunelit.data.vocabularies import find_settings, tell_vocabulary


def words(*names: str, **options: Any) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}))
    return PreTrainedTokenizerFast(tokenizer_object=inner, **options)


@pytest.mark.parametrize(
    ("dense", "other", "expected"),
    [
        (("a", "b"), ("a", "b"), None),
        (("a", "b"), ("b", "a"), "id 0 is 'a' there and 'b' here"),
        (("a", "b"), ("a",), "id 1 is 'b' there and no token here"),
        (("a",), ("a", "b", "c"), "id 1 is no token there and 'b' here"),
    ],
)
def test_the_first_token_that_differs(dense: Any, other: Any, expected: str | None) -> None:
    assert tell_vocabulary(words(*dense), words(*other)) == expected


def test_a_saved_tokenizer_is_the_same(tokenizer: PreTrainedTokenizerFast, tmp_path: Any) -> None:
    tokenizer.save_pretrained(tmp_path)
    tokenizer(["a", "bb"], padding=True, truncation=True, max_length=4)  # which it remembers
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert tell_vocabulary(tokenizer, again) is None
    assert find_settings(tokenizer, again) == []


def test_rules_and_templates_that_differ(tokenizer: PreTrainedTokenizerFast) -> None:
    other = words("a", "b")
    assert find_settings(words("a", "b"), other) == []
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    other.chat_template = "{{ messages }}"
    assert find_settings(words("a", "b"), other) == ["rules that divide a text", "chat template"]


def test_a_tokenizer_without_a_file_is_compared_by_its_class() -> None:
    class Slow:
        chat_template = None

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

    make: Callable[[], Any] = Slow
    assert tell_vocabulary(make(), make()) is None
    assert find_settings(make(), make()) == []
