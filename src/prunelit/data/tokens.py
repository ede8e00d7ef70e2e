"""Turn text into tokens: calibration sequences, evaluation windows and padded batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from prunelit.errors import InputError, first_line

# Characters that are read at least, so that the end of what is read is far from a wanted token.
_READ = 10_000
# Attribute of a tokenizer: see `limit_ids`.
_ROWS = "_prunelit_rows"


def pack(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequences: int,
    length: int,
    seed: int,
    bos: bool | None = None,
) -> Tensor:
    """Shuffle documents, join them and cut them into calibration sequences.

    Documents are joined by the end-of-text token, as in pre-training.

    Args:
        documents: raw text.
        tokenizer: of the model.
        sequences: S.
        length: L, tokens per sequence, the BOS token included.
        seed: of the order of the documents.
        bos: begin every sequence with a BOS token, see `window_start`.

    Returns:
        (S, L) int64 token ids, without padding.

    Raises:
        InputError: if there is not enough text; it says how many tokens there are.
    """
    if sequences < 1 or length < 1:
        raise InputError(
            f"Expected `sequences` and `length` of at least 1 but got {sequences} and {length}."
        )
    start = window_start(tokenizer, bos, length)
    end = [tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else []
    check_ids(tokenizer, end, "documents are joined by")
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed))
    needed = sequences * (length - len(start))
    ids: list[int] = []
    for index in order.tolist():
        if len(ids) >= needed:
            break
        ids.extend(encode_start(tokenizer, documents[int(index)], needed - len(ids)))
        ids.extend(end)
    if len(ids) < needed:
        raise InputError(
            f"Expected at least {needed} tokens for {sequences} sequences of {length} but the "
            f"{len(documents)} documents hold only {len(ids)}: give more text, or fewer or shorter "
            "sequences."
        )
    return _begin_each(start, torch.tensor(ids[:needed]).view(sequences, -1))


def windows(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    limit: int | None,
    separator: str = "\n\n",
    bos: bool | None = None,
) -> Tensor:
    """Cut the joined documents into windows that do not overlap; drop a partial last one.

    Args:
        documents: raw text, kept in order.
        tokenizer: of the model.
        length: L, tokens per window, the BOS token included, at least 2.
        limit: number of windows to keep; None keeps all.
        separator: between documents.
        bos: begin every window with a BOS token, see `window_start`.

    Returns:
        (N, L) int64 token ids.

    Raises:
        InputError: if the text is shorter than one window; it says how many tokens there are.
    """
    if length < 2:
        raise InputError(f"Expected `length` of at least 2 but got {length}.")
    if limit is not None and limit < 1:
        raise InputError(f"Expected `limit` of at least 1 but got {limit}.")
    start = window_start(tokenizer, bos, length)
    new = length - len(start)  # tokens of the text per window
    wanted = None if limit is None else limit * new
    ids = torch.tensor(encode_start(tokenizer, separator.join(documents), wanted))
    count = len(ids) // new
    if count == 0:
        raise InputError(
            f"Expected at least one window of {new} tokens but the {len(documents)} documents "
            f"hold only {len(ids)}: choose a smaller `length`, or give more text."
        )
    return _begin_each(start, ids[: count * new].view(count, new)[:limit])


def window_start(tokenizer: PreTrainedTokenizerBase, bos: bool | None, length: int) -> list[int]:
    """Return the tokens that begin every window of running text.

    Args:
        tokenizer: of the model.
        bos: True for the BOS token, False for none; None for what the tokenizer adds by itself.
        length: L, tokens per window.

    Raises:
        InputError: if the tokenizer has no BOS token, or the window has no place for text.
    """
    start = [] if bos is False else special_tokens(tokenizer).before
    if bos and not start:
        if not isinstance(tokenizer.bos_token_id, int):
            raise InputError("Expected a tokenizer with a BOS token for `bos: true` but got none.")
        start = [tokenizer.bos_token_id]
        check_ids(tokenizer, start, "a window begins with")
    if len(start) >= length:
        raise InputError(
            f"Expected `length` above {len(start)}, the number of tokens that begin a window, but "
            f"got {length}."
        )
    return start


def _begin_each(start: Sequence[int], rows: Tensor) -> Tensor:
    """Put the same tokens before each row of (N, T) ids."""
    first = torch.tensor(start, dtype=rows.dtype)
    return torch.cat([first.expand(len(rows), -1), rows], 1)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return token ids without special tokens, and without a warning about long texts."""
    return encode_all(tokenizer, [text])[0]


def encode_start(tokenizer: PreTrainedTokenizerBase, text: str, count: int | None) -> list[int]:
    """Return the first tokens of a text, at least `count` of them if it has as many.

    The text is read up to a place where reading twice as far changes none of these tokens. With
    None all of it is read.
    """
    size = max(_READ, 8 * (count or len(text)))  # characters; a token has four on average
    before = None
    while 2 * size < len(text):
        ids = encode(tokenizer, text[:size])[:count]
        if len(ids) == count and ids == before:
            return ids
        size, before = 2 * size, ids
    return encode(tokenizer, text)


def encode_all(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool = False
) -> list[list[int]]:
    """Return the token ids of each text, in one call of the tokenizer.

    Args:
        tokenizer: of the model.
        texts: may be empty.
        special: with the special tokens that the tokenizer adds by itself.

    Raises:
        InputError: naming a text that the tokenizer cannot read, or that has a token which the
            model does not embed, see `limit_ids`.
    """
    if not texts:
        return []
    try:
        found: Any = tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
    # Tokenizers raise plain exceptions, such as for a word without a token.
    except Exception as error:
        if len(texts) > 1:  # find the text
            return [encode_all(tokenizer, [text], special=special)[0] for text in texts]
        half = any("\ud800" <= letter <= "\udfff" for letter in texts[0])
        reason = "it holds half of a character" if half else first_line(error)
        raise InputError(
            f"The tokenizer cannot read the text {texts[0][:60]!r}: {reason}"
        ) from error
    encoded = [list(ids) for ids in found]
    for text, ids in zip(texts, encoded, strict=True):
        check_ids(tokenizer, ids, f"the text {text[:60]!r} has")
    return encoded


def check_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], what: str) -> None:
    """Refuse token ids that the model does not embed, see `limit_ids`.

    Args:
        tokenizer: of the model.
        ids: to check.
        what: begin of the error, such as "the text has".

    Raises:
        InputError: naming the token.
    """
    rows, highest = getattr(tokenizer, _ROWS, None), max(ids, default=0)
    if rows is not None and highest >= rows:
        token = decode(tokenizer, [highest], special=True)
        raise InputError(
            f"Expected only the {rows} tokens that the model embeds but {what} the token "
            f"{token!r} with the id {highest}: use another text or tokenizer."
        )


def limit_ids(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Make `encode` refuse texts with an id that the model does not embed.

    Some tokenizers have added tokens that no text of the model uses.

    Args:
        tokenizer: of the model.
        rows: number of tokens that the model embeds.
    """
    setattr(tokenizer, _ROWS, rows)


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens that a tokenizer adds to every text by itself, such as BOS and EOS.

    Args:
        before: ids before the text.
        after: ids after the text.
    """

    before: list[int]
    after: list[int]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """Find the tokens that `tokenizer(text)` adds to a text.

    Raises:
        InputError: if it changes the other tokens of a text, so that they cannot be told apart.
    """
    for probe in _probes(tokenizer):
        try:
            bare = encode(tokenizer, probe)
        except InputError:  # the vocabulary lacks it
            continue
        full = encode_all(tokenizer, [probe], special=True)[0]
        added = len(full) - len(bare)
        if not added and full == bare:
            return SpecialTokens([], [])
        found = [i for i in range(added + 1) if bare and full[i : i + len(bare)] == bare]
        if len(found) == 1:
            return SpecialTokens(full[: found[0]], full[found[0] + len(bare) :])
    raise InputError(
        f"The special tokens that {type(tokenizer).__name__} adds to a text cannot be told from "
        "the text itself: set `add_bos_token` and `add_eos_token` in its tokenizer_config.json."
    )


def _probes(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield short texts: a letter, then tokens of a vocabulary that may lack this letter."""
    yield "a"
    special = set(tokenizer.all_special_ids)
    ordinary = (token for token in sorted(tokenizer.get_vocab().values()) if token not in special)
    yield from (decode(tokenizer, [token]) for token in islice(ordinary, 1000))


def encode_text(
    tokenizer: PreTrainedTokenizerBase, text: str, *, closed: bool = False
) -> list[int]:
    """Return the token ids of a text with the special tokens that the tokenizer adds by itself.

    A special token is not added twice if the text begins or ends with it.

    Args:
        tokenizer: of the model.
        text: may be empty.
        closed: the text is complete: add the tokens after it too. Otherwise a model continues it.
    """
    special, ids = special_tokens(tokenizer), encode(tokenizer, text)
    before, after = special.before, special.after if closed else []
    begins, ends = ids[: len(before)] == before, ids[len(ids) - len(after) :] == after
    return [*([] if begins else before), *ids, *([] if ends else after)]


def name_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str | None:
    """Name special tokens in the details of a result; None if there are none."""
    return " ".join(tokenizer.convert_ids_to_tokens(list(ids))) or None


def decode(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], *, special: bool = False
) -> str:
    """Return the text of token ids with its spaces unchanged.

    Args:
        tokenizer: of the model.
        tokens: ids.
        special: keep the text of special tokens.
    """
    options = {"skip_special_tokens": not special, "clean_up_tokenization_spaces": False}
    text = tokenizer.decode(list(tokens), **options)
    assert isinstance(text, str)
    return text


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the padding token, which `load_tokenizer` has set."""
    assert isinstance(tokenizer.pad_token_id, int)
    return tokenizer.pad_token_id


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int, *, left: bool = False
) -> dict[str, Tensor]:
    """Pad sequences of unequal length to one batch.

    Pad on the right for scoring: positions are then those of the unpadded sequence in every model
    family. Pad on the left for generation.

    Args:
        sequences: token ids.
        pad_id: fills the rest of a row.
        left: pad on the left.

    Returns:
        `input_ids` and `attention_mask`, both (B, T) int64.

    Example:
        >>> from prunelit.data.tokens import pad
        >>> pad([[5, 6], [7]], pad_id=0, left=True)["input_ids"].tolist()
        [[5, 6], [0, 7]]
    """
    rows = [torch.tensor(sequence, dtype=torch.int64) for sequence in sequences]
    join = partial(pad_sequence, batch_first=True, padding_side="left" if left else "right")
    return {
        "input_ids": join(rows, padding_value=pad_id),
        "attention_mask": join([torch.ones_like(row) for row in rows]),
    }
