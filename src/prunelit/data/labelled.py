"""Texts with a label: read them, and keep training rows and test rows apart."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from prunelit.data.cells import as_label
from prunelit.data.rows import load_rows, name_row, refuse_row
from prunelit.errors import InputError


@dataclass(frozen=True)
class LabelledText:
    """A text with its label; `path`, `split` and `number` say where it was read."""

    text: str
    label: str
    path: str
    split: str
    number: int

    def place(self) -> str:
        """Name the row in a message."""
        return name_row(self.path, self.number, split=self.split)


def read_labelled(
    path: str,
    split: str,
    limit: int | None = None,
    *,
    text: str,
    label: str,
    name: str | None = None,
) -> list[LabelledText]:
    """Read texts with a label.

    Args:
        path: see `prunelit.data.load_rows`.
        split: see `prunelit.data.load_rows`.
        limit: number of rows; None reads all.
        text: column of the text.
        label: column of the label, a text or a whole number.
        name: of the configuration on the hub.

    Raises:
        InputError: if a column is missing, or a row has no text or no label.
    """
    rows = load_rows(path, columns=[text, label], split=split, name=name, limit=limit)
    found = []
    for number, row in enumerate(rows):
        own = as_label(row[label])
        if not isinstance(row[text], str):
            problem = f"`{text}` must be a string but is {row[text]!r:.60}"
            raise refuse_row(path, number, problem, split=split)
        if own is None:
            problem = f"`{label}` must be a text or a whole number but is {row[label]!r:.60}"
            raise refuse_row(path, number, problem, split=split)
        found.append(LabelledText(row[text], own, path, split, number))
    return found


def check_divisible(rows: Sequence[LabelledText]) -> None:
    """Refuse rows that cannot be divided so that each label is in both parts.

    Raises:
        InputError: naming the first label with a single row.
    """
    counts = Counter(row.label for row in rows)
    if rare := next((row for row in rows if counts[row.label] < 2), None):
        problem = (
            f"it is the only row with the label {rare.label!r:.60}, so it cannot be in both "
            "parts: give each label two rows, or give training rows of their own"
        )
        raise refuse_row(rare.path, rare.number, problem, split=rare.split)


def divide(
    rows: Sequence[LabelledText], *, test_share: float, seed: int
) -> tuple[list[LabelledText], list[LabelledText]]:
    """Divide rows into those of training and of test, each label in the same proportion.

    Both parts keep the order of the rows.

    Args:
        rows: of one file.
        test_share: share of the rows in the second part.
        seed: of the division.

    Raises:
        InputError: if a part would lack a label.
    """
    from sklearn.model_selection import train_test_split  # half a second

    check_divisible(rows)
    labels = [row.label for row in rows]
    try:
        parts = train_test_split(
            range(len(rows)), test_size=test_share, random_state=seed, stratify=labels
        )
    except ValueError as error:
        raise InputError(
            f"The {len(rows)} rows of {rows[0].path!r} cannot be divided with `test_share` "
            f"{test_share}: each part needs a row of each of the {len(set(labels))} labels. Add "
            "rows, or change the share."
        ) from error
    training, test = ([rows[number] for number in sorted(part)] for part in parts)
    return training, test


def find_shared(
    training: Sequence[LabelledText], test: Sequence[LabelledText]
) -> list[LabelledText]:
    """Return the test rows whose text is that of a training row; spaces are one."""
    known = {" ".join(row.text.split()) for row in training}
    return [row for row in test if " ".join(row.text.split()) in known]
