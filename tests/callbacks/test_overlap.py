"""Test items whose text is in the calibration text."""

from pathlib import Path

import pytest
import torch

from prunelit import CalibrationText, PruneData
from prunelit.callbacks.overlap import find_overlaps
from prunelit.report.items import write_items
from prunelit.tasks import Generation


def test_items_are_found_without_their_template(
    material: Path, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"the capital of the country number {n} is a town" for n in range(4)]
    rows = [
        {"item": n, "model": model, "prompt": f"Question: {text}?\nAnswer:"}
        for n, text in enumerate(texts)
        for model in ("dense", "pruned")
    ]
    path = str(material / "questions.jsonl")
    write_items(rows, tmp_path / "generation.parquet")
    data = PruneData(CalibrationText(str(material / "text.jsonl")), [Generation(path)])
    assert find_overlaps(data, tokenizer, tmp_path) == {}  # there are no windows yet

    windows = [f"Before. {texts[2]}? After.", "Nothing that an item has in it."]
    monkeypatch.setattr(type(tokenizer), "batch_decode", lambda *_, **__: windows)
    data.calibration_tokens = torch.zeros(2, 4, dtype=torch.int64)
    found = find_overlaps(data, tokenizer, tmp_path)
    assert found["generation"]["items"] == 1
    assert found["generation"]["n"] == 4
    assert "number 2" in found["generation"]["first"]
