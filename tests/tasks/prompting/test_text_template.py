"""A long text loses its end and never the template's."""

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prunelit import InputError
from prunelit.tasks.prompting.text_template import TextTemplate, check_template


def test_a_text_that_fits_stays_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    template = TextTemplate('The {{word}} "{text}" means: ')
    ids = template.tokens(tokenizer, "snow {text}", 40)
    assert tokenizer.decode(ids) == 'The {word} "snow {text}" means: '


@pytest.mark.parametrize(("length", "kept"), [(12, "abcdefgh"), (11, "abcdefg"), (5, "a")])
def test_a_long_text_loses_its_end(
    tokenizer: PreTrainedTokenizerBase, length: int, kept: str
) -> None:
    template = TextTemplate("<{text}> =")
    ids = template.tokens(tokenizer, "abcdefgh", length)
    assert len(ids) <= length
    assert tokenizer.decode(ids) == f"<{kept}> ="


def test_without_a_length_a_text_is_not_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    template = TextTemplate("<{text}> =")
    template.check(tokenizer, None)
    assert tokenizer.decode(template.tokens(tokenizer, "ab" * 99, None)) == f"<{'ab' * 99}> ="


def test_a_text_without_a_token_is_one_of_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    assert TextTemplate("{text}").tokens(tokenizer, "", 8) == [tokenizer.pad_token_id]
    assert TextTemplate("={text}").tokens(tokenizer, "", 8) == tokenizer("=")["input_ids"]


def test_what_the_tokenizer_puts_before_a_text_counts(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<end> $A", special_tokens=[("<end>", 0)]
    )
    template = TextTemplate("<{text}> =")
    for text in ("ab", "abcdefgh"):
        ids = template.tokens(tokenizer, text, 8)
        assert tokenizer.decode(ids) == f"<end><{text[:3]}> ="
    template.check(tokenizer, 6)
    with pytest.raises(InputError, match=r"above 5, .*, but got 5"):
        template.check(tokenizer, 5)


def test_a_text_ends_as_the_tokenizer_has_it(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", 0)]
    )
    template = TextTemplate("<{text}> =")
    assert template.tokens(tokenizer, "ab", None) == tokenizer("<ab> =")["input_ids"]
    assert tokenizer.decode(template.tokens(tokenizer, "abcdefgh", 8)) == "<abc> =<end>"
    assert TextTemplate("{text}").tokens(tokenizer, "", 8) == tokenizer("")["input_ids"] == [0]
    template.check(tokenizer, 6)
    with pytest.raises(InputError, match=r"above 5, .*, but got 5"):
        template.check(tokenizer, 5)


@pytest.mark.parametrize(
    "template",
    ["word", "{context}", "{text} {text}", "{text!r}", "{text:>9}", "{text", "{} {text}"],
)
def test_another_form_is_refused(template: str) -> None:
    with pytest.raises(InputError, match=r"template '.*'"):
        TextTemplate(template)


def test_a_length_without_room_for_a_text_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    template = TextTemplate("<{text}> =")
    template.check(tokenizer, 5)
    with pytest.raises(InputError, match=r"above 4, .*, but got 4"):
        template.check(tokenizer, 4)


def test_a_good_template_passes() -> None:
    check_template("Q: {context}\nA:", "context")


@pytest.mark.parametrize(
    "template",
    ["Q: {question}", "Q: {context} {}", "Q: {context", "Q: {context.text}", "Q: {context[a]}"],
)
def test_a_template_that_cannot_be_filled_is_refused(template: str) -> None:
    with pytest.raises(InputError, match="Expected a template with the fields context but"):
        check_template(template, "context")


def test_a_template_without_its_field_is_refused() -> None:
    with pytest.raises(InputError, match=r"Expected the field \{context\} in the template 'Q'"):
        check_template("Q", "context")
