"""A multimodal model keeps its towers and files; a spoiled report is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedTokenizerBase,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from prunelit import load_pretrained, prune, save_pretrained
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, trunk
from prunelit.models.report_file import experts_before, read_report
from prunelit.pruners import BlockDrop, Heads, Neuron, Pruner, SublayerDrop, Wanda
from prunelit.sparsity import Unstructured

PROCESSOR = {"preprocessor_config.json": {"patch_size": 8}, "video_preprocessor_config.json": {}}


@pytest.fixture
def source(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A folder with a tiny model of texts and images; tower and text have as many blocks."""
    torch.manual_seed(0)
    text = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]
        },
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "depth": 3, "num_heads": 2, "patch_size": 8,
        "out_hidden_size": 32, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    special = {"image_token_id": 290, "video_token_id": 291, "vision_start_token_id": 292}
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, vision_end_token_id=293, **special
    )
    folder = tmp_path / "dense"
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, content in PROCESSOR.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "pruner",
    [
        Wanda(Unstructured(0.5)),
        Neuron(0.25),
        Heads(0.5),
        SublayerDrop(1, "attention"),
        BlockDrop(1),
    ],
    ids=lambda pruner: type(pruner).__name__,
)
@torch.no_grad()
def test_the_text_decoder_alone_is_pruned(
    pruner: Pruner, source: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model, _ = load_pretrained(str(source))
    assert isinstance(model, Qwen3VLForConditionalGeneration)
    assert decoder_blocks(model)[0] == "model.language_model.layers"
    assert trunk(model) is model.model.language_model
    before = {name: value.clone() for name, value in model.model.visual.state_dict().items()}
    report = prune(model, pruner, torch.randint(1, 257, (4, 16)))
    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    for name, content in PROCESSOR.items():
        assert json.loads((tmp_path / "pruned" / name).read_text()) == content
    again, _ = load_pretrained(str(tmp_path / "pruned"))
    state = again.model.visual.state_dict()
    assert all(value.equal(state[name]) for name, value in before.items())
    ids = torch.randint(1, 257, (2, 9))
    assert again(input_ids=ids).logits.equal(model(input_ids=ids).logits)
    if not isinstance(pruner, SublayerDrop):
        stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "pruned").eval()
        assert type(stock) is type(model)
        assert stock(input_ids=ids).logits.equal(model(input_ids=ids).logits)


@pytest.mark.parametrize(
    "kept", [[0], *({"0.mlp.experts": numbers} for numbers in (3, [0, -1], [1, 1]))]
)
def test_experts_that_are_no_numbers_are_refused(kept: object, tmp_path: Path) -> None:
    report = {"removed": {"experts": 2, "kept_experts": {"0.mlp.experts": [0, 3]}}}
    (tmp_path / "pruning.json").write_text(json.dumps(report))
    assert read_report(tmp_path) == report
    report["removed"]["kept_experts"] = kept
    (tmp_path / "pruning.json").write_text(json.dumps(report))
    with pytest.raises(
        InputError,
        match=r"Expected numbers of experts as `removed\.kept_experts` in .* prune again",
    ):
        read_report(tmp_path)


def test_it_tells_how_many_experts_there_were() -> None:
    name = "model.layers.2.mlp.experts.down_proj"
    report: dict[str, Any] = {"tensors": [{"name": name, "shape": [4, 8, 8]}]}
    assert experts_before(report) == set()
    report["removed"] = {"kept_experts": {"1.mlp.experts": [0, 3]}}
    assert experts_before(report) == {4}
    for tensors in (3, [3], [{"name": name}], [{"name": name, "shape": []}]):
        with pytest.raises(InputError, match="prune again"):
            experts_before({**report, "tensors": tensors})
