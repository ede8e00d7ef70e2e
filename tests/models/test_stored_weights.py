"""Integers in the place of weights, and blocks, read from the files of a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prunelit import load_pretrained
from prunelit.errors import InputError
from prunelit.models.stored_weights import count_blocks, find_cast

UP = "model.layers.1.mlp.up_proj.weight"


def edit_weight(folder: Path, name: str, value: Tensor) -> None:
    """Replace a weight of a folder."""
    path = folder / "model.safetensors"
    save_file(load_file(path) | {name: value}, path, {"format": "pt"})


def save_as(folder: Path, form: str) -> None:
    """Save the weights of a folder again in another form."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if form == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
        return
    halves = {f"{i}.safetensors": sorted(weights)[i::2] for i in range(2)}
    for file, names in halves.items():
        save_file({name: weights[name] for name in names}, folder / file, {"format": "pt"})
    places = {name: file for file, names in halves.items() for name in names}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("form", ["whole", "shards", "bin"])
@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.int32, "I32|torch.int32"), (torch.uint8, "U8|torch.uint8"), (torch.bool, "BOOL|bool")],
)
def test_integers_in_the_place_of_weights(
    folder: Path, dtype: torch.dtype, name: str, form: str
) -> None:
    edit_weight(folder, UP, torch.ones(48, 32, dtype=dtype))
    if form != "whole":
        save_as(folder, form)
    with pytest.raises(
        InputError,
        match=rf"dense' holds 1 weights .* 'model\.layers\.1\.mlp\.up_proj\.weight' in .*({name})",
    ):
        load_pretrained(str(folder))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_floating_point_of_any_width(folder: Path, dtype: torch.dtype) -> None:
    weight = torch.eye(48, 32).to(dtype)
    edit_weight(folder, UP, weight)
    model, _ = load_pretrained(str(folder), dtype="float32")
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, torch.eye(48, 32))


# Tensors that older versions of transformers wrote, and that change nothing.
OLD = {
    "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    "gpt2": {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8),
        "transformer.h.1.attn.masked_bias": torch.tensor(-1e4),
    },
    "gpt_neox": {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e4),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4),
    },
}


@pytest.mark.parametrize("old", [*OLD, "tied"])
def test_old_buffers_and_a_tied_weight_are_neither_refused_nor_told(
    old: str,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = make_model("llama" if old == "tied" else old)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tied = {"lm_head.weight": model.get_input_embeddings().weight.detach().clone()}
    save_file(load_file(path) | OLD.get(old, tied), path, {"format": "pt"})
    with caplog.at_level("INFO"):
        load_pretrained(str(tmp_path))
    assert "leaves out" not in caplog.text


def test_integers_of_a_buffer_or_left_out_are_no_weights(
    folder: Path, model: PreTrainedModel
) -> None:
    edit_weight(folder, "model.position_ids", torch.arange(4))
    edit_weight(folder, "model.extra", torch.arange(4))
    assert find_cast(model, folder, ["model.extra"]) == {}
    assert find_cast(model, folder, []) == {"model.extra": "I64"}
    edit_weight(folder, "layers.1.mlp.up_proj.weight", torch.ones(48, 32, dtype=torch.int8))
    assert "layers.1.mlp.up_proj.weight" in find_cast(model, folder, ["model.extra"])


def test_blocks_are_counted_in_the_headers(folder: Path) -> None:
    assert count_blocks(folder) == 3
    save_as(folder, "shards")
    assert count_blocks(folder) == 3
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    assert count_blocks(folder) is None
