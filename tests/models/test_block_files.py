import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunelit.models import block_files
from prunelit.models.architecture import decoder_blocks
from prunelit.models.block_files import write_blocks
from prunelit.models.stores import Store, keep_in


class Hidden(Store):
    """Shows the weights of a block only while it is whole; notes how many blocks are."""

    whole = 0

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.weights = {weight: weight.data for weight in block.parameters()}
        self.leave(edited=False)
        Hidden.whole = 0

    def fetch(self) -> None:
        Hidden.whole += 1
        assert Hidden.whole == 1
        for weight, value in self.weights.items():
            weight.data = value

    def leave(self, edited: bool) -> None:
        Hidden.whole -= 1
        for weight, value in self.weights.items():
            weight.data = torch.full_like(value, torch.nan)


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    yield
    Hidden.whole = 0


def test_stock_transformers_reads_it(
    family: str, make_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    dense, model = make_model(family).bfloat16(), make_model(family).bfloat16()
    blocks = decoder_blocks(model)[1]
    for block in blocks:
        keep_in(block, Hidden(block))
    write_blocks(model, tmp_path)
    names = [f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)]
    index = "model.safetensors.index.json"
    others = {"config.json", "generation_config.json", index}
    assert {path.name for path in tmp_path.iterdir()} == {*names, *others}
    found = AutoModelForCausalLM.from_pretrained(tmp_path)
    for (name, weight), (other, expected) in zip(
        found.named_parameters(), dense.named_parameters(), strict=True
    ):
        assert name == other
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, expected), name
    # As the library itself writes it.
    dense.save_pretrained(tmp_path / "own", max_shard_size=20_000)
    mine, own = (
        json.loads((folder / index).read_text()) for folder in (tmp_path, tmp_path / "own")
    )
    assert mine["weight_map"].keys() == own["weight_map"].keys()
    assert mine["metadata"]["total_size"] == own["metadata"]["total_size"]


@pytest.mark.parametrize(("name", "files"), [("llama", 2), ("gpt2", 4)])  # both tie
def test_a_large_tensor_outside_the_blocks_has_a_file_of_its_own(
    make_model: Callable[..., PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    files: int,
) -> None:
    monkeypatch.setattr(block_files, "_SMALL", 0)
    model = make_model(name)
    write_blocks(model, tmp_path)
    written = list(tmp_path.glob("*.safetensors"))
    assert len(written) == files + len(decoder_blocks(model)[1])
    found = AutoModelForCausalLM.from_pretrained(tmp_path)
    for key, weight in found.named_parameters():
        assert torch.equal(weight, model.get_parameter(key)), key
