"""Compare the tokenizers of two models."""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

# Parts of a tokenizer's file that an earlier call may have set, or that the vocabulary contains.
_OTHER_PARTS = ("truncation", "padding", "added_tokens", "version")


def tell_vocabulary(dense: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    """Say where the tokens of two tokenizers differ; None if every id is the same token.

    Args:
        dense: of the dense model.
        other: of the model that it is compared with.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> from prunelit.data.vocabularies import tell_vocabulary
        >>> words = [Tokenizer(models.WordLevel({"a": 0, word: 1})) for word in ("b", "c")]
        >>> tell_vocabulary(*(PreTrainedTokenizerFast(tokenizer_object=one) for one in words))
        "id 1 is 'b' there and 'c' here"
    """
    mine, theirs = dense.get_vocab(), other.get_vocab()
    if mine == theirs:
        return None
    found = [{number: token for token, number in one.items()} for one in (mine, theirs)]
    # The lowest id, as tokens that were added behind a vocabulary are no surprise.
    number = min(n for n in {**found[0], **found[1]} if found[0].get(n) != found[1].get(n))
    there, here = (repr(one[number]) if number in one else "no token" for one in found)
    return f"id {number} is {there} there and {here} here"


def find_settings(dense: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> list[str]:
    """Name what differs in two tokenizers beside their tokens.

    Args:
        dense: of the dense model.
        other: of the model that it is compared with.
    """
    parts = {"rules that divide a text": _rules, "chat template": _chat_template}
    return [name for name, part in parts.items() if part(dense) != part(other)]


def tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what decides the ids of a text and the text of ids, as plain data."""
    return {
        "class": type(tokenizer).__qualname__,
        "rules": _rules(tokenizer),
        "vocabulary": tokenizer.get_vocab(),
        "added": {number: repr(one) for number, one in tokenizer.added_tokens_decoder.items()},
        "ends": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
    }


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> Any:
    return tokenizer.chat_template


def _rules(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return what turns a text into ids, as plain data; of a slow tokenizer the name of its class.

    The ids of tokens are left out.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return type(tokenizer).__name__
    rules = json.loads(backend.to_str())
    return {key: value for key, value in rules.items() if key not in _OTHER_PARTS}
