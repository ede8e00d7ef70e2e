"""The sizes that the headers of configs state are those of their variants."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from prunelit.callbacks.baselines import packed_bytes
from prunelit.models.fingerprint import weight_bytes
from prunelit.pruners import Quantize
from prunelit.sparsity import count_removed

FOLDER = Path(__file__).parents[2] / "configs"
BITS = 32  # of a weight that is not rounded, in the model as it is loaded; its file has half


def variants(name: str) -> dict[str, list[dict[str, Any]]]:
    """Read the methods of each variant, by name."""
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return {
        key: own["init_args"]["methods"] if own["class_path"].endswith(".Sequence") else [own]
        for key, own in content["variants"].items()
    }


def options(methods: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Find the options of a method; none if it is not there."""
    return next((m["init_args"] for m in methods if m["class_path"].endswith(f".{name}")), {})


def build(methods: list[dict[str, Any]]) -> LlamaForCausalLM:
    """Build what methods leave of the demo's model, without values."""
    neurons = count_removed(options(methods, "Neuron").get("ratio", 0.0), 1536)
    groups = 3 - options(methods, "Heads").get("count", 0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536 - neurons,
        num_hidden_layers=30 - options(methods, "BlockDrop").get("count", 0),
        num_attention_heads=3 * groups,
        num_key_value_heads=groups,
        head_dim=64,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


DENSE = build([])


def file_bytes(methods: list[dict[str, Any]]) -> float:
    """Count the bytes of a file, as the header of the config says."""
    model, bits = build(methods), options(methods, "Quantize").get("bits")
    size = weight_bytes(model) / 2 if bits is None else packed_bytes(model, Quantize(bits), 0.5)
    if sparsity := options(methods, "Wanda").get("sparsity"):
        prunable = sum(w.numel() for w in model.model.layers.parameters() if w.ndim > 1)
        size += prunable / 8 * (1 - sparsity["init_args"]["ratio"] * (bits or BITS / 2))
    return size


def test_the_dense_model_is_that_of_the_demo() -> None:
    assert DENSE.num_parameters() == 134_515_008


@pytest.mark.parametrize("percent", [10, 20, 30])
def test_fewer_parameters(percent: int) -> None:
    found, most = variants("fewer_parameters"), DENSE.num_parameters() * (1 - percent / 100)
    for name in ("budget", "by_block"):
        assert found[f"{name}_{percent}"][0]["init_args"]["parameters"] * 100 == 100 - percent
    width = build(found[f"width_{percent}"]).num_parameters()
    assert width <= most == pytest.approx(width, rel=1e-3)
    block = sum(weight.numel() for weight in DENSE.model.layers[0].parameters())
    depth = build(found[f"depth_{percent}"]).num_parameters()
    assert abs(depth - most) <= block / 2


@pytest.mark.parametrize(("bits", "size"), [(8, 169.5e6), (4, 116.4e6), (3, 103.1e6)])
def test_bytes_are_equal(bits: int, size: float) -> None:
    found = variants("prune_and_round")
    own = {name: file_bytes(found[name]) for name in found if name.endswith(f"_{bits}")}
    assert len(own) == 3
    assert own == {name: pytest.approx(size, rel=1e-3) for name in own}
