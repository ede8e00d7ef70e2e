"""Fill templates with text; cut the text to a length, but not the template."""

import re
from string import Formatter

from transformers import PreTrainedTokenizerBase

from prunelit.data.tokens import encode, encode_text, pad_token, special_tokens
from prunelit.errors import InputError

_WIDEST = 10_000  # characters that a field is filled up to


class TextTemplate:
    """A template with the text of a query, a document or a sentence.

    Args:
        template: with the field `{text}` once and no other field.

    Raises:
        InputError: if it has another form.
    """

    def __init__(self, template: str) -> None:
        try:
            parts = list(Formatter().parse(template))
        except ValueError as error:
            raise InputError(f"The template {template!r} is not valid: {error}.") from error
        fields = [(place, part[1:]) for place, part in enumerate(parts) if part[1] is not None]
        if [field for _, field in fields] != [("text", "", None)]:
            raise InputError(f"Expected exactly the field {{text}} in the template {template!r}.")
        self.template = template
        # The parser splits literals at escaped braces.
        literals, cut = [literal for literal, *_ in parts], fields[0][0] + 1
        self._before, self._after = "".join(literals[:cut]), "".join(literals[cut:])

    def check(self, tokenizer: PreTrainedTokenizerBase, length: int | None) -> None:
        """Refuse a length that the template alone reaches.

        Raises:
            InputError: with the number of tokens of the template.
        """
        own = len(encode_text(tokenizer, self._before)) + len(self._end(tokenizer))
        if length is not None and own >= length:
            raise InputError(
                f"Expected `length` above {own}, the number of tokens of the template "
                f"{self.template!r}, but got {length}."
            )

    def tokens(
        self, tokenizer: PreTrainedTokenizerBase, text: str, length: int | None
    ) -> list[int]:
        """Return the token ids of a text in the template, with the tokenizer's special tokens.

        The end of a text that is too long is cut, but not the template or a special token.

        Args:
            tokenizer: of the model.
            text: may be empty. If there is no token at all, the result is the padding token.
            length: maximum number of tokens, special tokens included; None does not cut.
        """
        ids = encode_text(tokenizer, f"{self._before}{text}{self._after}", closed=True)
        if length is not None and len(ids) > length:
            after = self._end(tokenizer)
            before = encode_text(tokenizer, f"{self._before}{text}")
            ids = before[: length - len(after)] + after
        return ids or [pad_token(tokenizer)]

    def _end(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the token ids after the field, with those that the tokenizer ends a text by."""
        ids, after = encode(tokenizer, self._after), special_tokens(tokenizer).after
        return ids if ids[len(ids) - len(after) :] == after else ids + after


def check_template(template: str, *names: str) -> None:
    """Refuse a template that lacks a field or has an unknown one.

    Args:
        template: a format string, see `str.format`.
        names: of its fields.

    Raises:
        InputError: if a field is missing or unknown, or the format string is not valid.
    """
    try:
        for _, _, form, _ in Formatter().parse(template):
            if any(int(number) > _WIDEST for number in re.findall(r"\d{1,999}", form or "")):
                raise InputError(
                    f"Expected fields of at most {_WIDEST} characters in the template {template!r} "
                    f"but got the width {form!r:.40}: take a smaller one."
                )
        filled = template.format(**{name: f"\0{name}\0" for name in names})
    except InputError:
        raise
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"Expected a template with the fields {', '.join(names)} but formatting {template!r} "
            f"fails ({type(error).__name__}: {error}): correct the template."
        ) from error
    for name in names:
        if f"\0{name}\0" not in filled:
            raise InputError(
                f"Expected the field {{{name}}} in the template {template!r}: write it there."
            )
