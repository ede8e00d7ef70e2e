import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prunelit import InputError
from prunelit.models.inference.generation import rollout
from prunelit.models.inference.stop_strings import StopStrings, cut_at_stop

BUDGET = 12


@pytest.mark.parametrize(
    ("text", "strings", "expected"),
    [
        ("a\n\nb\n\nc", ["\n\n"], "a"),
        ("a Question: b", ["b", "Question:"], "a "),
        ("abc", ["x"], "abc"),
        ("abc", [], "abc"),
        ("abc", ["a"], ""),
    ],
)
def test_a_text_is_cut_before_its_first_stop_string(
    text: str, strings: list[str], expected: str
) -> None:
    assert cut_at_stop(text, strings) == expected


def test_empty_stop_strings_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"not empty but got \['a', ''\]"):
        StopStrings(tokenizer, ["a", ""], 3)


def test_a_string_counts_where_it_is_complete_and_not_from_the_prompt(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    def steps(prompt: str, written: list[str], stops: list[str]) -> list[list[bool]]:
        rows = [tokenizer(prompt + text)["input_ids"] for text in written]
        length = len(tokenizer(prompt)["input_ids"])
        criterion = StopStrings(tokenizer, stops, length)
        total = len(rows[0])
        for end in range(length + 1, total + 1):
            criterion(torch.tensor([row[:end] for row in rows]), None)
        return criterion.ends(total - length).tolist()

    # For each row: the step that completes the first "bc" ends it.
    assert steps("xb", ["abcbc", "cabca", "zzzzz"], ["bc"]) == [
        [False, False, True, False, False],
        [False, False, False, True, False],
        [False] * 5,
    ]
    # The string that is complete first ends the row.
    assert steps("x", ["abcd"], ["cd", "b"]) == [[False, True, False, False]]


def test_a_long_stop_string_of_several_bytes_a_character_is_found(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    stop = "Überschrift: 東京" * 3
    ids = torch.tensor([tokenizer("p" + "w" * 50 + stop)["input_ids"]])
    criterion = StopStrings(tokenizer, [stop], 1)
    assert criterion(ids[:, :-1], None).tolist() == [False]
    assert criterion(ids, None).tolist() == [True]


def only_letters(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A model that generates only small letters."""
    letters = tokenizer("abcdefghijklmnopqrstuvwxyz")["input_ids"]
    refused = torch.full((model.config.vocab_size,), -1e4)
    refused[letters] = 0
    model.lm_head.register_forward_hook(lambda _, __, logits: logits + refused)
    return model


@torch.no_grad()
def test_a_batch_stops_as_its_rows_do_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, padded: dict[str, Tensor]
) -> None:
    only_letters(model, tokenizer)
    free = rollout(model, tokenizer, **padded, max_new_tokens=BUDGET).tokens
    texts = [tokenizer.decode(row) for row in free]
    # Characters 3 to 4 of row 0 and 6 to 7 of row 1.
    stops = [texts[0][2:4], texts[1][5:7]]
    found = rollout(model, tokenizer, **padded, max_new_tokens=BUDGET, stop_strings=stops)
    assert found.ended[:2].all()
    for row in range(6):
        length = int((found.tokens[row] >= 0).sum())
        assert torch.equal(found.tokens[row, :length], free[row, :length])
        written = tokenizer.decode(free[row, :length])
        before = tokenizer.decode(free[row, : length - 1])
        assert bool(found.ended[row]) == any(stop in written for stop in stops)
        assert not any(stop in before for stop in stops)
        assert length == BUDGET or found.ended[row]
        real = padded["attention_mask"][row].bool()
        ids = padded["input_ids"][row, real][None]
        options = {"max_new_tokens": BUDGET, "stop_strings": stops}
        alone = rollout(model, tokenizer, ids, torch.ones_like(ids), **options)
        assert torch.equal(alone.tokens[0], found.tokens[row])
        assert alone.ended[0] == found.ended[row]


@torch.no_grad()
def test_an_end_of_text_before_the_string_ends_the_row(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, input_ids: Tensor
) -> None:
    only_letters(model, tokenizer)
    mask = torch.ones_like(input_ids)
    free = rollout(model, tokenizer, input_ids, mask, max_new_tokens=6).tokens
    model.generation_config.eos_token_id = int(free[2, 1])
    stop = tokenizer.decode(free[2, 3:5])
    options = {"max_new_tokens": 6, "stop_strings": [stop]}
    found = rollout(model, tokenizer, input_ids, mask, **options)
    assert (found.tokens[2] >= 0).sum() <= 2
    assert found.ended[2]
