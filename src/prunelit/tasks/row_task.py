"""Base of the tasks that read the rows of a data set."""

from functools import cached_property
from typing import Any

from prunelit.data.hub_rows import commit_of, pin
from prunelit.tasks.base import Task


class RowTask(Task):
    """A task on the rows of a data set.

    Args:
        path: data set on the hub or local file, see `prunelit.data.load_rows`.
        split: of the data set.
        limit: number of rows; None reads all.
        kwargs: options of `Task`.
    """

    def __init__(
        self, path: str, split: str = "train", limit: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.split = split
        self.limit = limit

    @cached_property
    def pinned(self) -> str:
        """The path to read; a data set on the hub has its commit behind an @."""
        return pin(self.path)

    def source_details(self) -> dict[str, Any]:
        """Return path and split, and the commit of a data set on the hub."""
        return {"path": self.path, "split": self.split, **commit_of(self.pinned)}
