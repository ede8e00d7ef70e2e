"""The table of families in the documentation: write it, and read it."""

import re
from collections.abc import Iterable
from pathlib import Path

import transformers

from .walk import METHODS, Family

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "families.md"
COLUMNS = ("model type", *METHODS, "why not")
_TEXT = """# Model families

Every model type of transformers {version} that predicts the next token, and the multimodal ones
whose text decoder does. Of each, a tiny random model was pruned by each kind of method, written,
and read again. `yes` means: the model that was read gives the logits of the one in memory,
generation with a cache gives the tokens of generation without one, and padding on the left changes
nothing. `no`: the method is refused before a weight changes, with the sentence in the last column.
`none`: the model has no such part. `not tried`: no tiny model could be built.

* **weights**: Wanda, SparseGPT and Magnitude at 50%.
* **experts**: `ExpertDrop` of a quarter, in mixtures.
* **expert outputs**: `ExpertMerge` of a quarter, and `ExpertDrop` by `reconstruction`. They run the
  router and the experts of a mixture alone.
* **neurons**: a quarter of the neurons of every MLP, and of every expert.
* **heads**: half of the groups of heads of every attention.
* **channels**: a quarter of the channels of the residual stream.
* **mixers**, **MLPs**: one sublayer. A mixer is attention, or what a block has in its place, such
  as a state space.
* **blocks**: the second block.

`python scripts/walk_families.py` writes this page, in some minutes. Tests compare forty families
with it in every run, and all of them in a full one.

"""


def write_page(families: Iterable[Family]) -> None:
    """Write the page of the documentation."""
    rows = [dict(zip(COLUMNS, COLUMNS, strict=True)), dict.fromkeys(COLUMNS, "---")]
    rows += [family.row() for family in sorted(families, key=lambda family: family.model_type)]
    lines = ["| " + " | ".join(_escape(row[name]) for name in COLUMNS) + " |" for row in rows]
    text = _TEXT.format(version=transformers.__version__) + "\n".join(lines) + "\n"
    PAGE.write_text(text, encoding="utf-8")


def read_page() -> dict[str, dict[str, str]]:
    """Read the rows of the page, by model type."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    cells = [line[2:-2].split(" | ") for line in lines[2:]]
    rows = [dict(zip(COLUMNS, own, strict=True)) for own in cells]
    return {row["model type"].strip("`"): row for row in rows}


def comparable(row: dict[str, str]) -> dict[str, str]:
    """Return a row without the numbers and the places in its sentences, which may differ."""
    return {
        **row,
        "model type": "",
        "why not": re.sub(r"\d[\d.]*(e-?\d+)?|/\S+", "#", row["why not"]),
    }


def _escape(text: str) -> str:
    return text.replace("|", "&#124;")
