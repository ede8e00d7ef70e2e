"""No folder is believed before a few tokens were run through it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit import load_pretrained, prune, save_pretrained
from prunelit.errors import InputError
from prunelit.models.proof import answer
from prunelit.pruners import BlockDrop, Magnitude
from prunelit.sparsity import Unstructured

Spoil = Callable[[PreTrainedModel], None]


def scale_attention(model: PreTrainedModel) -> None:
    model.model.layers[1].self_attn.scaling *= 2


def count_other_heads(model: PreTrainedModel) -> None:
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 5.0}


def stop_loading(model: PreTrainedModel) -> None:
    model.config.hidden_act = "no such function"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (scale_attention, r"differ by .*`model.layers.1.self_attn.scaling` is 0.35\d* and not 0.7"),
        (count_other_heads, "would be another model, so it was not kept"),
        (stop_loading, "could not be loaded, so it was not kept: .*no such function"),
    ],
)
def test_a_folder_of_another_model_is_not_kept(
    spoil: Spoil,
    message: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "pruned"
    save_pretrained(model, tokenizer, folder, prune(model, Magnitude(Unstructured(0.25))))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = prune(model, Magnitude(Unstructured(0.5)))
    spoil(model)
    with pytest.raises(InputError, match=message):
        save_pretrained(model, tokenizer, folder, report)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_proven_too(
    dtype: torch.dtype,
    family: str,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,
    tmp_path: Path,
) -> None:
    model = make_model(family).to(dtype)
    report = prune(model, BlockDrop(1), input_ids)
    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    again, _ = load_pretrained(str(tmp_path / "pruned"))
    assert again.dtype == dtype
    expected = answer(model)
    scale = expected.abs().max().item()  # the positions of `model` are rounded too
    torch.testing.assert_close(answer(again), expected, rtol=0, atol=0.03 * scale)


def test_random_numbers_go_on_as_before(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    report = prune(model, Magnitude(Unstructured(0.5)))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    assert torch.rand(3).equal(expected)
    assert json.loads((tmp_path / "pruned" / "pruning.json").read_text())["content"]
    assert not model.training
