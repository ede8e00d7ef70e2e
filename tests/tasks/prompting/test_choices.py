"""Questions to text, text to tokens, and examples."""

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from prunelit import InputError
from prunelit.tasks.prompting.choices import Prompt, tokenise
from prunelit.tasks.questions import GroupedQuestion, Question

SNOW = Question("snow", "Colour of {snow}?", ["white", "red", "a } b"], 0)


def test_continuation() -> None:
    prompt = Prompt("Q: {context}\nA:")
    before = "Q: Colour of {snow}?\nA:"
    assert prompt.texts(SNOW) == [(before, " white"), (before, " red"), (before, " a } b")]


def test_letters() -> None:
    prompt = Prompt("{context}\n{choices}\nAnswer:", scoring="letter", delimiter="\t")
    before = "Colour of {snow}?\nA. white\nB. red\nC. a } b\nAnswer:"
    assert prompt.texts(SNOW) == [(before, "\tA"), (before, "\tB"), (before, "\tC")]


def test_partial() -> None:
    question = Question("x", "I put the _ in  the bag. _ ", ["cup", "box"], 1)
    found = Prompt("> {context}", scoring="partial").texts(question)
    assert found == [
        ("> I put the cup", " in  the bag. _"),
        ("> I put the box", " in  the bag. _"),
    ]


def test_before_a_question() -> None:
    prompt = Prompt("Q: {context}\nA:", description="Say.\n\n")
    other = Question("b", "2?", ["3", "4"], 1)
    assert prompt.preamble(SNOW) == "Say.\n\n"
    assert prompt.preamble(SNOW, [other, other]) == "Say.\n\nQ: 2?\nA: 4\n\nQ: 2?\nA: 4\n\n"


def test_before_a_question_of_a_group() -> None:
    prompt = Prompt("{context}", description="About {group}. ")
    grouped = GroupedQuestion("x", "1?", ["1", "2"], 0, "high_school_maths")
    assert prompt.preamble(grouped) == "About high school maths. "
    with pytest.raises(
        InputError, match=r"Expected rows with a `group`, since .* but 'snow' has none"
    ):
        prompt.preamble(SNOW)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"template": "Q"}, r"Expected the field \{context\}"),
        ({"template": "{context}", "scoring": "letter"}, r"Expected the field \{choices\}"),
        ({"template": "{context}{choices}"}, "Expected a template with the fields context but"),
        (
            {"template": "{context} A:", "scoring": "partial"},
            r"`template` that ends with \{context\}",
        ),
        ({"template": "{context}", "scoring": "letters"}, "Expected `scoring` to be .* 'letters'"),
        ({"template": "{context}", "description": "{topic}"}, "the fields group but"),
    ],
)
def test_templates_that_do_not_fit_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        Prompt(**options)


def test_questions_that_do_not_fit_are_refused() -> None:
    many = Question("many", "?", [str(i) for i in range(27)], 0)
    with pytest.raises(InputError, match="Expected at most 26 choices, one per letter, but 'many'"):
        Prompt("{context}{choices}", scoring="letter").texts(many)
    for context in ("no blank", "ends with _ "):
        with pytest.raises(InputError, match="Expected a blank `_` with text after it in"):
            Prompt("{context}", scoring="partial").texts(Question("x", context, ["a", "b"], 0))


def test_spaces_at_the_end_of_the_context_belong_to_the_continuation(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    ((context, continuation),) = tokenise(tokenizer, [("Answer:  ", "no")])
    assert tokenizer.decode(context) == "Answer:"
    assert tokenizer.decode(continuation) == "  no"


@pytest.mark.parametrize("bos", [None, "a"])
def test_an_empty_context_is_the_token_that_begins_a_text(
    tokenizer: PreTrainedTokenizerFast, bos: str | None
) -> None:
    tokenizer.bos_token = bos
    ((context, continuation),) = tokenise(tokenizer, [("", " no")])
    assert tokenizer.decode(context) == (bos or "<end>")
    assert tokenizer.decode(continuation) == " no"
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(InputError, match="Expected a BOS or EOS token"):
        tokenise(tokenizer, [("", " no")])


def test_what_the_tokenizer_puts_before_a_text_comes_first(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    bare = tokenise(tokenizer, [("Answer:", " no")])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<end> $A <end>", special_tokens=[("<end>", 0)]
    )
    assert tokenise(tokenizer, [("Answer:", " no")]) == [([0, *bare[0][0]], bare[0][1])]
