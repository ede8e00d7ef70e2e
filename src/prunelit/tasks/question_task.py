"""Base of the tasks that ask multiple-choice questions."""

from collections.abc import Sequence
from typing import Any

from prunelit.data.rows import hash_rows
from prunelit.data.sources import subset_of
from prunelit.tasks.formats.base import Format, read_questions
from prunelit.tasks.prompting.few_shot import FewShot
from prunelit.tasks.questions import Example, Question
from prunelit.tasks.row_task import RowTask


class QuestionTask(RowTask):
    """A task whose rows are questions, see `prunelit.tasks.formats.base.read_questions`.

    Args:
        subset: configuration of a data set on the hub.
        format: converts a row to a question, see `prunelit.tasks.formats`.
        columns: in place of a format, the data set's names of `context`, `choices` (a list if each
            has its own column) and `label`; for `Generation` without `questions`, of `context` and
            `target`.
        kwargs: options of the other bases.
    """

    def __init__(
        self,
        subset: str | None = None,
        format: Format | None = None,
        columns: dict[str, list[str] | str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.subset = subset
        self.format = format
        self.columns = columns

    def read_questions(self) -> list[Question]:
        """Read the rows of the task.

        Raises:
            InputError: naming the first row that is not a question.
        """
        return read_questions(
            self.pinned,
            self.split,
            self.limit,
            subset=self.subset,
            format=self.format,
            columns=self.columns,
        )

    def read_pool(self, few_shot: FewShot) -> list[Question]:
        """Read the questions that few-shot examples are drawn from.

        Raises:
            InputError: naming the first row that is not a question.
        """
        source = few_shot.source(self.pinned, self.subset)
        return read_questions(**source, format=self.format, columns=self.columns)

    def row_details(self, asked: Sequence[Question | Example]) -> dict[str, Any]:
        """Return path, split, commit and subset, and a hash of the rows' content."""
        return {
            **self.source_details(),
            "subset": subset_of(self.path, self.subset),
            "rows_sha256": hash_rows([vars(one) for one in asked]),
        }
