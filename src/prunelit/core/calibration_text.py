"""The text that pruning is calibrated on."""

from dataclasses import dataclass
from typing import Any

from prunelit.arguments import checked
from prunelit.data.rows import Documents
from prunelit.data.sources import as_source
from prunelit.errors import check_seed, check_whole


@checked
@dataclass
class CalibrationText:
    """Text that pruning is calibrated on.

    Its documents are tokenised, joined in a random order and cut into sequences of one length.

    Args:
        path: text rows, see `prunelit.data.load_rows`.
        split: of the data set. Slice it (`train[:70%]`) to keep other text for the tasks.
        column: name of the column that holds the text.
        sequences: S, number of sequences.
        length: L, tokens per sequence, the BOS token included.
        batch_size: sequences per forward pass.
        seed: of the order of the documents.
        bos: begin every sequence with a BOS token. None does what the tokenizer does for a text.
        documents: how a text file is divided, see `prunelit.data.load_texts`.
        subset: configuration of a data set on the hub.

    Example:
        >>> from prunelit import CalibrationText
        >>> text = CalibrationText("text.jsonl", split="train[:70%]", sequences=32, length=256)
        >>> text.sequences * text.length  # tokens
        8192
    """

    path: str
    split: str = "train"
    column: str = "text"
    sequences: int = 128
    length: int = 512
    batch_size: int = 8
    seed: int = 0
    bos: bool | None = None
    documents: Documents = "whole"
    subset: str | None = None

    def __post_init__(self) -> None:
        check_text(self)


def check_text(text: Any) -> None:
    """Refuse numbers that no text has.

    Args:
        text: a `CalibrationText` or a `RecoveryText`.

    Raises:
        InputError: naming the option.
    """
    text.path = as_source(text.path)
    for name in ("sequences", "length", "batch_size"):
        check_whole(name, getattr(text, name), 1)
    check_seed("seed", text.seed)
