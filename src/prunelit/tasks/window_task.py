"""Base of the tasks on the windows of a text."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunelit.data.rows import Documents, hash_rows, load_texts, text_rule
from prunelit.data.sources import subset_of
from prunelit.data.tokens import name_tokens, window_start, windows
from prunelit.tasks.row_task import RowTask


class WindowTask(RowTask):
    """A task whose items are non-overlapping token windows of a text.

    The documents are joined by an empty line. A text file is one document, as it is in the file;
    `documents` divides it.

    Args:
        column: column of the text.
        length: L, number of tokens per window, at least 2, the BOS token included.
        limit: number of windows; None reads all.
        bos: begin every window with a BOS token. None does what the tokenizer does for a text.
        documents: how a text file is divided, see `prunelit.data.load_texts`.
        subset: configuration of a data set on the hub.
        kwargs: options of `RowTask`.
    """

    def __init__(
        self,
        column: str = "text",
        length: int = 512,
        limit: int | None = None,
        bos: bool | None = None,
        documents: Documents = "whole",
        subset: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(limit=limit, **kwargs)
        self.column = column
        self.length = length
        self.bos = bos
        self.documents: Documents = documents
        self.subset = subset

    def read(self) -> None:
        self._documents = load_texts(
            self.pinned,
            column=self.column,
            split=self.split,
            documents=self.documents,
            name=self.subset,
        )

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> int:
        self._start = name_tokens(tokenizer, window_start(tokenizer, self.bos, self.length))
        self._windows = windows(
            self._documents, tokenizer, length=self.length, limit=self.limit, bos=self.bos
        )
        self.longest = self.length
        return len(self._windows)

    @property
    def windows(self) -> Tensor:
        """(N, length) token ids, after `prepare`."""
        return self._windows

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        return {"input_ids": self._windows[list(indices)]}

    def details(self, tokens_a_window: int) -> dict[str, Any]:
        """Return the options and hashes that two comparable results have in common."""
        return {
            **self.source_details(),
            "subset": subset_of(self.path, self.subset),
            "text_rule": text_rule(self.path, self.documents),
            "text_sha256": hash_rows(self._documents),
            "length": self.length,
            "bos": self._start,
            "tokens": len(self._windows) * tokens_a_window,
        }
