"""Base of the tasks that read the rows of a data set."""

from functools import cached_property
from typing import Any

from prunelit.data.hub_rows import commit_of, pin
from prunelit.data.rows import name_row, refuse_row
from prunelit.errors import InputError, check_whole
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
        if limit is not None:
            check_whole("limit", limit, 1)
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

    def name_row(self, number: int, id: str | None = None) -> str:
        """Name a row in a message, see `prunelit.data.rows.name_row`."""
        return name_row(self.path, number, split=self.split, id=id)

    def refuse_row(self, number: int, problem: str, id: str | None = None) -> InputError:
        """Return the error of a row."""
        return refuse_row(self.path, number, problem, split=self.split, id=id)
