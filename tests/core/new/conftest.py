"""Files as people have them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

Rows = list[dict[str, Any]]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], str]:
    """`write(name, rows)`: the name of a file in the working folder, of any kind."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, rows: Any) -> str:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(rows, str):
            path.write_text(rows)
        elif path.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif path.suffix == ".json":
            path.write_text(json.dumps(rows))
        elif path.suffix in (".csv", ".tsv"):
            sign = "," if path.suffix == ".csv" else "\t"
            lines = [rows[0].keys(), *(row.values() for row in rows)]
            path.write_text("\n".join(sign.join(map(str, cells)) for cells in lines))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    return write


@pytest.fixture
def labelled() -> Rows:
    """Texts with two labels."""
    return [
        {"Ticket ID": n, "Message": f"message number {n} about {'pay' if n % 3 else 'door'}",
         "Intent": "billing" if n % 3 else "login"}
        for n in range(12)
    ]  # fmt: skip


@pytest.fixture
def collection(write: Callable[[str, Any], str]) -> str:
    """A folder in the format of BEIR, whose only judgements are those of the split `dev`."""
    things = ["router", "lamp", "phone", "oven"]
    corpus = [{"_id": t, "title": t, "text": f"Press the {t} to reset it."} for t in things]
    write("tickets/corpus.jsonl", corpus)
    write("tickets/queries.jsonl", [{"_id": t, "text": f"How to reset my {t}?"} for t in things])
    judged = [{"query-id": t, "corpus-id": t, "score": 1} for t in things]
    write("tickets/qrels/dev.tsv", judged)
    return "tickets"
