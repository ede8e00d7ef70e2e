"""Tokens, common prefixes and batches of many questions."""

import pytest
from transformers import PreTrainedTokenizerFast

from prunelit import InputError
from prunelit.models.inference.prefix_cache import MIN_PREFIX
from prunelit.tasks.prompting.plans import Plan, build_plan

LONG = "A text of more than sixteen tokens. "


def planned(
    tokenizer: PreTrainedTokenizerFast, questions: list[tuple[str, str, list[str]]]
) -> Plan:
    """Build one question from each (text before, prompt, choices)."""
    names = [prompt for _, prompt, _ in questions]
    before = [text for text, _, _ in questions]
    texts = [[(prompt, choice) for choice in choices] for _, prompt, choices in questions]
    return build_plan(tokenizer, 0, names, before, texts)


def read(tokenizer: PreTrainedTokenizerFast, own: Plan, index: int) -> str:
    return tokenizer.decode(own.roots[own.root_of[index]] + own.branches[index].stem)


def test_questions_after_one_text_share_its_root(tokenizer: PreTrainedTokenizerFast) -> None:
    choices = ["yes", "no"]
    own = planned(
        tokenizer,
        [
            (LONG, "b?", choices),
            ("Another.", "c?", choices),  # alone with its text
            (LONG, "d?", choices),
            ("Short.", "e?", choices),
            ("Short.", "f?", choices),
        ],
    )
    assert [tokenizer.decode(root) for root in own.roots] == ["", LONG]
    assert own.root_of == [1, 0, 1, 0, 0]
    assert len("Short.") < MIN_PREFIX < len(LONG)
    assert [read(tokenizer, own, index) for index in range(5)] == [
        *(f"{LONG}b?", "Another.c?", f"{LONG}d?", "Short.e?", "Short.f?")
    ]
    begins = [f"{LONG}b", "Another.c", f"{LONG}d", "Short.e", "Short.f"]
    assert own.lengths == [len(f"{text}?ye") for text in begins]


def test_a_root_reaches_as_far_as_the_prompts_agree(tokenizer: PreTrainedTokenizerFast) -> None:
    own = planned(tokenizer, [("", f"{LONG}Question {i}", ["a", "b"]) for i in range(3)])
    assert tokenizer.decode(own.roots[1]) == f"{LONG}Question "
    assert own.root_of == [1, 1, 1]


def test_batches_are_of_one_root_and_alike_in_length(tokenizer: PreTrainedTokenizerFast) -> None:
    questions = [(LONG if i % 2 else "", "x" * (1 + 7 * i % 11), ["a", "b"]) for i in range(20)]
    own = planned(tokenizer, questions)
    chunks = own.chunks(4, 30)
    assert sorted(index for chunk in chunks for index in chunk) == list(range(20))
    for chunk in chunks:
        assert len({own.root_of[index] for index in chunk}) == 1
        assert len(chunk) <= 4
        lengths = [len(own.branches[index].stem) for index in chunk]
        assert lengths == sorted(lengths, reverse=True)
        assert len(chunk) == 1 or sum(lengths) <= 30
    for root in set(own.root_of):
        stems = [
            len(own.branches[i].stem) for chunk in chunks for i in chunk if own.root_of[i] == root
        ]
        assert stems == sorted(stems, reverse=True)
    assert own.chunks(100, 10**6) == [
        sorted(
            (i for i in range(20) if own.root_of[i] == root),
            key=lambda i: -len(own.branches[i].stem),
        )
        for root in (0, 1)
    ]


def test_a_question_longer_than_the_budget_is_a_batch(tokenizer: PreTrainedTokenizerFast) -> None:
    own = planned(tokenizer, [("", "x" * 50, ["a", "b"]), ("", "y", ["a", "b"])])
    assert own.chunks(8, 10) == [[0], [1]]


def test_a_choice_without_tokens_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"A choice of the row 'b\?' adds no token to the prompt"):
        planned(tokenizer, [("", "a?", ["x", "y"]), ("", "b?", ["x", ""])])
