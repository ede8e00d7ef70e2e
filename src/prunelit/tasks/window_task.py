"""Base of the tasks on the windows of a text."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from prunelit.data.rows import hash_rows, load_texts
from prunelit.data.tokens import windows
from prunelit.tasks.base import Task


class WindowTask(Task):
    """A task whose items are non-overlapping token windows of a text.

    Args:
        path: text rows, see `prunelit.data.load_rows`; documents are joined by an empty line.
        split: of the data set.
        column: column of the text.
        length: L, number of tokens per window.
        limit: number of windows; None reads all.
        batch_size: number of windows per batch.
        name: of the task.
    """

    def __init__(
        self,
        path: str,
        split: str,
        column: str,
        length: int,
        limit: int | None,
        batch_size: int,
        name: str,
    ) -> None:
        super().__init__(name, batch_size)
        self.path = path
        self.split = split
        self.column = column
        self.length = length
        self.limit = limit

    def read(self) -> None:
        self._documents = load_texts(self.path, column=self.column, split=self.split)

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> int:
        self._windows = windows(self._documents, tokenizer, length=self.length, limit=self.limit)
        self.longest = self.length
        return len(self._windows)

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        return {"input_ids": self._windows[list(indices)]}

    def details(self, tokens_a_window: int) -> dict[str, Any]:
        """Return the options and hashes that two comparable results have in common."""
        return {
            "path": self.path,
            "split": self.split,
            "text_sha256": hash_rows(self._documents),
            "length": self.length,
            "tokens": len(self._windows) * tokens_a_window,
        }
