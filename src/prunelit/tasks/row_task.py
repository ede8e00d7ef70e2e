"""Base of the tasks that read the rows of a data set."""

from typing import Any

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
