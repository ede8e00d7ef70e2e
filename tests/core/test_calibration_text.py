"""Calibration tokens, made from the text that the options describe."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from prunelit import InputError
from prunelit.core.calibration_text import CalibrationText
from prunelit.core.datamodule import PruneData
from prunelit.data.tokens import pack


def test_calibration_is_packed_from_its_split_by_its_seed(
    material: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = material / "text.jsonl"
    data = PruneData(
        CalibrationText(str(path), split="train[:9]", sequences=5, length=16, batch_size=2, seed=3)
    )
    data.prepare(tokenizer)
    lines = path.read_text().splitlines()
    documents = [line.removeprefix('{"text": "').removesuffix('"}') for line in lines]
    expected = pack(documents[:9], tokenizer, sequences=5, length=16, seed=3)
    batches = data.calibration_batches()
    assert [len(batch["input_ids"]) for batch in batches] == [2, 2, 1]
    assert torch.cat([batch["input_ids"] for batch in batches]).equal(expected)
    assert all(batch["attention_mask"].all() for batch in batches)


def test_too_little_text_says_how_much_there_was(
    material: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    data = PruneData(CalibrationText(str(material / "text.jsonl"), sequences=500, length=16))
    with pytest.raises(InputError, match=r"8000 tokens .* hold only 744"):
        data.prepare(tokenizer)
