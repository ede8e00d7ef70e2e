"""How a multiple-choice question becomes text, and text becomes tokens to score."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from prunelit.data.tokens import leading_tokens
from prunelit.errors import InputError
from prunelit.models.inference.token_tree import Request
from prunelit.tasks.prompting.text_template import check_template
from prunelit.tasks.questions import Question, get_group

Scoring = Literal["continuation", "letter", "partial"]

BLANK = "_"
_BETWEEN = "\n\n"  # examples


@dataclass(frozen=True)
class Prompt:
    """What a model reads before what is scored, and what is scored, for each choice.

    Args:
        template: of the prompt, with the field `{context}`, and `{choices}` for `letter`.
        delimiter: between the prompt and what is scored.
        scoring: `continuation` scores the text of a choice; `letter` the letter of a choice, A, B,
            C, ..., which the field `{choices}` lists with their texts, one a line; `partial` fills
            the blank `_` of the context with the choice and scores the rest of the sentence (Trinh
            and Le 2018, arXiv:1806.02847), so that its template ends with `{context}`.
        description: stands before everything else; may have the field `{group}`.

    Raises:
        InputError: if the template lacks a field or has an unknown one.
    """

    template: str
    delimiter: str = " "
    scoring: Scoring = "continuation"
    description: str = ""

    def __post_init__(self) -> None:
        if self.scoring not in ("continuation", "letter", "partial"):
            raise InputError(
                "Expected `scoring` to be 'continuation', 'letter' or 'partial' but got "
                f"{self.scoring!r}."
            )
        fields = ("context", "choices") if self.scoring == "letter" else ("context",)
        check_template(self.template, *fields)
        if self.scoring == "partial" and not self.template.endswith("{context}"):
            raise InputError(
                "Expected a template that ends with {context}, since partial scoring scores the "
                f"rest of it, but got {self.template!r}."
            )
        if "{" in self.description:
            check_template(self.description, "group")

    def texts(self, question: Question) -> list[tuple[str, str]]:
        """For each choice the prompt, without what stands before, and what is scored after it.

        Raises:
            InputError: if the question has more choices than letters, or no blank.
        """
        choices = question.choices
        if self.scoring == "partial":
            before, _, after = question.context.partition(BLANK)
            if not after.strip():
                raise InputError(
                    f"Expected a blank `{BLANK}` with text after it in the context of "
                    f"{question.id!r} but got {question.context!r}."
                )
            rest = self.delimiter + after.strip()
            return [(self.template.format(context=before + choice), rest) for choice in choices]
        if self.scoring == "continuation":
            prompt = self.template.format(context=question.context)
            return [(prompt, self.delimiter + choice) for choice in choices]
        letters = string.ascii_uppercase[: len(choices)]
        if len(letters) < len(choices):
            raise InputError(
                f"Expected at most {len(letters)} choices, one a letter, but {question.id!r} has "
                f"{len(choices)}."
            )
        listed = "\n".join(f"{a}. {text}" for a, text in zip(letters, choices, strict=True))
        prompt = self.template.format(context=question.context, choices=listed)
        return [(prompt, self.delimiter + letter) for letter in letters]

    def before(self, question: Question, examples: Sequence[Question] = ()) -> str:
        """What stands before a question: the description, then solved examples.

        Raises:
            InputError: if the description names a group and the question has none.
        """
        text = self.description
        if "{" in text:
            if (group := get_group(question)) is None:
                raise InputError(
                    "Expected rows with a `group`, which the description names, but "
                    f"{question.id!r} has none."
                )
            text = text.format(group=group.replace("_", " "))
        for example in examples:
            text += "".join(self.texts(example)[example.label]) + _BETWEEN
        return text


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]]) -> list[Request]:
    """Tokens of contexts and continuations, as lm-evaluation-harness cuts them.

    Both are tokenised together and cut where the context's own tokens end. Spaces at the end of a
    context belong to the continuation; an empty context is the beginning-of-text token, or the
    end-of-text token where there is none. What the tokenizer puts before every text comes first.

    Args:
        tokenizer: of the model.
        texts: pairs of context and continuation.
    """
    lead = leading_tokens(tokenizer)
    moved = []
    for context, continuation in texts:
        end = len(context.rstrip())
        moved.append((context[:end], context[end:] + continuation))
    distinct = dict.fromkeys(text for c, k in moved for text in (c, c + k) if text)
    encoded = dict(zip(distinct, encode_all(tokenizer, list(distinct)), strict=True))
    requests = []
    for context, continuation in moved:
        whole = encoded[context + continuation] if context + continuation else []
        if not context:
            requests.append((_start(tokenizer), whole))
            continue
        cut = len(encoded[context])
        requests.append((lead + whole[:cut], whole[cut:]))
    return requests


def encode_all(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """`prunelit.data.tokens.encode` of many texts."""
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [list(ids) for ids in encoded]  # type: ignore[union-attr]


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    start = next((i for i in ids if isinstance(i, int)), None)
    if start is None:
        raise InputError(
            "Expected a beginning- or end-of-text token to read in place of an empty context but "
            "the tokenizer has neither."
        )
    return [start]
