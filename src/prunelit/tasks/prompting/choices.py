"""Convert a multiple-choice question to prompts, and prompts to tokens."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from prunelit.data.tokens import check_ids, encode_all, special_tokens
from prunelit.errors import InputError
from prunelit.models.inference.token_tree import Request
from prunelit.tasks.prompting.text_template import check_template
from prunelit.tasks.questions import Question, get_group

Scoring = Literal["continuation", "letter", "partial"]

BLANK = "_"
_BETWEEN = "\n\n"  # two examples


@dataclass(frozen=True)
class Prompt:
    """Builds the prompt and the continuation that is scored, for each choice.

    Scorings:

    * `continuation` scores the text of a choice.
    * `letter` scores the letter of a choice (A, B, C, ...). The field `{choices}` of the template
      lists letters and texts, one choice per line.
    * `partial` fills the blank `_` of the context with the choice, and scores the rest of the
      sentence (Trinh and Le 2018, arXiv:1806.02847). The template must end with `{context}`.

    Args:
        template: of the prompt, with the field `{context}`, for `letter` also `{choices}`.
        delimiter: between prompt and continuation.
        scoring: see above.
        description: text before everything else; may have the field `{group}`.

    Raises:
        InputError: if a field of the template is missing or unknown.

    Example:
        >>> from prunelit.tasks.prompting.choices import Prompt
        >>> from prunelit.tasks.questions import Question
        >>> Prompt("Q: {context} A:").texts(Question("1", "2 + 2 = ?", ["3", "4"], 1))
        [('Q: 2 + 2 = ? A:', ' 3'), ('Q: 2 + 2 = ? A:', ' 4')]
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
                "Expected a `template` that ends with {context}, since `scoring: partial` scores "
                f"the end of the context, but got {self.template!r}."
            )
        if "{" in self.description:
            check_template(self.description, "group")

    def texts(self, question: Question) -> list[tuple[str, str]]:
        """Return prompt and continuation of each choice, without the preamble.

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
                f"Expected at most {len(letters)} choices, one per letter, but {question.id!r} has "
                f"{len(choices)}."
            )
        listed = "\n".join(f"{a}. {text}" for a, text in zip(letters, choices, strict=True))
        prompt = self.template.format(context=question.context, choices=listed)
        return [(prompt, self.delimiter + letter) for letter in letters]

    def preamble(self, question: Question, examples: Sequence[Question] = ()) -> str:
        """Return the text before a question: the description, then solved examples.

        Raises:
            InputError: if the description names a group and the question has none.
        """
        text = self.description
        if "{" in text:
            if (group := get_group(question)) is None:
                raise InputError(
                    "Expected rows with a `group`, since the description has the field {group}, "
                    f"but {question.id!r} has none."
                )
            text = text.format(group=group.replace("_", " "))
        for example in examples:
            text += "".join(self.texts(example)[example.label]) + _BETWEEN
        return text


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]]) -> list[Request]:
    """Tokenise contexts and continuations as lm-evaluation-harness does.

    Both are tokenised together, and the tokens are split after as many as the context alone has.
    Spaces at the end of a context belong to the continuation. An empty context is the BOS token, or
    the EOS token if there is no BOS token. Every sequence starts with the tokenizer's own BOS
    token, if it adds one.

    Args:
        tokenizer: of the model.
        texts: pairs of context and continuation.
    """
    lead = special_tokens(tokenizer).before
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
        start = [] if whole[: len(lead)] == lead else lead
        requests.append((start + whole[:cut], whole[cut:]))
    return requests


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    start = next((i for i in ids if isinstance(i, int)), None)
    if start is None:
        raise InputError(
            "Expected a BOS or EOS token in place of an empty context but the tokenizer has "
            "neither."
        )
    check_ids(tokenizer, [start], "an empty context is")
    return [start]
