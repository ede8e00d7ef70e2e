"""Every family keeps what the documentation says of it.

Every run walks the most used families; a full run walks all model types of transformers.
"""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import table
from .table import comparable, read_page, write_page
from .tiny import model_types
from .walk import Family, measure

MOST_USED = (
    *("qwen3", "llama", "qwen2", "qwen3_5_text", "gpt_oss", "qwen3_moe", "gemma3_text"),
    *("gemma4_text", "deepseek_v3", "mistral", "qwen3_5_moe_text", "qwen3_next", "glm4_moe"),
    *("phi3", "qwen3_vl", "llama4_text", "mixtral", "gemma3n_text", "smollm3", "olmo2", "granite"),
    *("granitemoehybrid", "lfm2", "lfm2_moe", "minimax_m2", "nemotron_h", "falcon_h1", "olmoe"),
    *("kimi_linear", "mamba2", "gemma2", "gpt2", "gpt_neox", "opt", "phi", "bloom", "falcon"),
    *("gptj", "jamba", "ernie4_5_moe"),
)
TYPES = [
    pytest.param(name, marks=[] if name in MOST_USED else [pytest.mark.full])
    for name in model_types()
]


@pytest.fixture(autouse=True)
def _no_garbage_collection() -> Iterator[None]:
    """Look for no garbage meanwhile, which takes a fifth of the time of a walk."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.filterwarnings("ignore")  # of the libraries, for sizes and families of no interest
@pytest.mark.parametrize("model_type", TYPES)
def test_a_family_does_what_the_table_says(model_type: str, request: pytest.FixtureRequest) -> None:
    full = "full" in request.config.getoption("markexpr")
    family = measure(model_type, quick=not full)
    assert not family.faults
    row = read_page().get(model_type)
    assert row is not None, f"{model_type} is missing: run `python scripts/walk_families.py`"
    assert comparable(family.row()) == comparable(row), "run `python scripts/walk_families.py`"


def test_the_table_has_every_type() -> None:
    assert list(read_page()) == model_types()
    assert set(MOST_USED) <= set(model_types())
    assert len(MOST_USED) == 40


def test_the_table_is_read_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "PAGE", tmp_path / "page.md")
    outcomes = {
        "weights": None,
        "experts": "Expected a mixture with fused experts",
        "expert outputs": "Expected a mixture with fused experts",
        "neurons": "a | b",
        "heads": None,
        "channels": None,
        "mixers": None,
        "MLPs": "got no MLP: prune",
    }
    families = [Family("b", refused="No."), Family("a", outcomes={**outcomes, "blocks": "a | b"})]
    write_page(families)
    rows = read_page()
    assert list(rows) == ["a", "b"]
    cells = {
        "weights": "yes",
        "experts": "none",
        "expert outputs": "none",
        "neurons": "no",
        "heads": "yes",
        "channels": "yes",
        "mixers": "yes",
        "MLPs": "none",
        "blocks": "no",
    }
    assert rows["a"] == {"model type": "a", **cells, "why not": "neurons, blocks: a &#124; b"}
    assert rows["b"] == {"model type": "b", **dict.fromkeys(cells, "no"), "why not": "No."}


def test_a_number_in_a_sentence_may_change_but_no_cell() -> None:
    row = {"model type": "a", "weights": "no", "why not": "They differ by 0.31e-2 in /tmp/x."}
    assert comparable(row) == comparable({**row, "why not": "They differ by 4 in /tmp/y."})
    assert comparable(row) != comparable({**row, "weights": "yes"})
