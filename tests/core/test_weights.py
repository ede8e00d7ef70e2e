"""The weights of a run, read without a Trainer."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prunelit.core.placement import measure_sizes
from prunelit.core.weights import Weights
from prunelit.models.loading import DType

SCRIPT = Path(__file__).parents[1] / "material" / "read_share.py"
MEMORY = Path("/dev/shm")  # of Linux: a touched page brings 64 KiB; on a disk it may bring 2 MiB


@pytest.fixture
def weights(material: Path) -> Weights:
    return Weights(str(material / "dense"))


def test_both_models_are_loaded_apart(weights: Weights) -> None:
    weights.load()
    dense, pruned = weights.pair.dense, weights.pair.pruned
    assert dense is not None
    assert pruned is not dense
    own = dict(pruned.named_parameters())
    for name, weight in dense.named_parameters():
        assert weight.equal(own[name])
        assert weight.data_ptr() != own[name].data_ptr()
        assert not weight.requires_grad


@pytest.mark.parametrize("trains", [True, False])
def test_what_is_outside_the_blocks_is_there_once_unless_it_is_trained(
    weights: Weights, trains: bool
) -> None:
    weights.trains = trains
    weights.load()
    assert weights.pair.dense is not None
    one, other = (model.get_input_embeddings().weight for model in weights.pair.models().values())
    assert (one.data_ptr() == other.data_ptr()) != trains


def test_loading_again_does_nothing(weights: Weights) -> None:
    weights.load()
    pair = weights.pair
    weights.load()
    assert weights.pair is pair


def test_without_its_reference_the_model_can_still_be_trained(material: Path) -> None:
    weights = Weights(str(material / "dense"), reference=False)
    weights.load()
    assert weights.pair.dense is None
    assert all(parameter.requires_grad for parameter in weights.pair.pruned.parameters())


def test_a_pruned_folder_is_loaded_beside_the_dense_model(
    material: Path, make_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    folder, other = tmp_path / "other", make_model(seed=1)
    shutil.copytree(material / "dense", folder)  # for the tokenizer
    other.save_pretrained(folder)
    weights = Weights(str(material / "dense"))
    weights.load(folder)
    dense = Weights(str(material / "dense"), reference=False)
    dense.load()
    assert weights.pair.dense is not None
    for name, expected in dense.pair.pruned.named_parameters():
        assert weights.pair.dense.get_parameter(name).equal(expected)
    for name, expected in other.named_parameters():
        assert weights.pair.pruned.get_parameter(name).equal(expected)


def test_after_the_pruned_model_is_discarded_the_dense_one_is_copied(
    material: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "dense"
    shutil.copytree(material / "dense", folder)
    weights = Weights(str(folder))
    weights.load()
    dense = weights.pair.dense
    assert dense is not None
    with torch.no_grad():
        weights.pair.pruned.get_input_embeddings().weight.zero_()
    weights.discard_pruned()
    with pytest.raises(RuntimeError, match="Expected `load` to be called"):
        _ = weights.pair
    shutil.rmtree(folder)  # nothing can be read again
    weights.load()
    assert weights.pair.dense is dense
    for name, parameter in weights.pair.pruned.named_parameters():
        assert parameter.requires_grad
        assert parameter.equal(dense.get_parameter(name))


@pytest.mark.distributed
@pytest.mark.skipif(not MEMORY.is_dir(), reason="reads /proc, and needs pages that come one by one")
@pytest.mark.parametrize(("world", "kind"), [(2, "llama"), (3, "llama"), (3, "mixtral")])
def test_no_rank_reads_more_than_its_share(
    world: int, kind: str, tokenizer: PreTrainedTokenizerBase, run_ranks: Callable[..., None]
) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 4,
    }
    if kind == "mixtral":  # its files hold each expert by itself
        sizes |= {"intermediate_size": 256, "num_local_experts": 4, "num_key_value_heads": 4}
    config = AutoConfig.for_model(kind, vocab_size=300, num_hidden_layers=4, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    with tempfile.TemporaryDirectory(dir=MEMORY) as path:
        for saved in (model, tokenizer):
            saved.save_pretrained(Path(path, "dense"))
        run_ranks(SCRIPT, world, FOLDER=path)
        found = [
            json.loads(Path(path, f"{world}-{rank}.json").read_text()) for rank in range(world)
        ]
    size = measure_sizes(model)
    share = size.blocks / world + size.skeleton
    assert sum(rank["read"] for rank in found) >= world * share
    for rank in found:
        assert rank["equal"]
        assert rank["read"] <= share + size.block
        assert kind == "mixtral" or rank["read"] >= share  # of each block, or of whole blocks
        assert rank["all"] >= size.model  # what a rank that reads all would have read


@pytest.mark.parametrize(
    ("dtype", "device", "stored", "instructions", "found"),
    [
        ("auto", "cpu", torch.bfloat16, False, torch.float32),
        ("auto", "cpu", torch.bfloat16, True, torch.bfloat16),
        ("auto", "cuda", torch.bfloat16, False, torch.bfloat16),
        ("auto", "cpu", torch.float16, False, torch.float16),
        ("bfloat16", "cpu", torch.bfloat16, False, torch.bfloat16),
    ],
)
def test_bfloat16_is_not_chosen_where_it_is_slower(
    material: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    dtype: DType,
    device: str,
    stored: torch.dtype,
    instructions: bool,
    found: torch.dtype,
) -> None:
    monkeypatch.setattr("prunelit.core.weights.multiplies_bfloat16", lambda: instructions)
    shutil.copytree(material / "dense", tmp_path, dirs_exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=stored)
    model.save_pretrained(tmp_path)
    weights = Weights(str(tmp_path), dtype=dtype)
    weights.device = torch.device(device)
    with caplog.at_level("INFO"):
        weights.settle_dtype(lambda same: same)
    assert ("no instructions for bfloat16" in caplog.text) == (stored is not found)
    assert weights.recipe()["dtype"] == ("float32" if stored is not found else dtype)
    assert weights.origin.dtype is found
    weights.load()
    assert weights.pair.dense is not None
    for own, wide in zip(weights.pair.dense.parameters(), model.parameters(), strict=True):
        assert own.dtype is found
        assert own.equal(wide.to(found))
