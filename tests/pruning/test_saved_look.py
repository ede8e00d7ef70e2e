"""What a method found in its first pass is read in later calls, if only amounts differ."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunelit import prune
from prunelit.models.architecture import decoder_blocks
from prunelit.models.experts import find_experts
from prunelit.models.variation import Variation
from prunelit.pruners import Budget, DepthByLoss, ExpertDrop, Pruner
from prunelit.pruning.blockwise import _LookPass
from prunelit.pruning.outputs import Outputs

MakeModel = Callable[..., PreTrainedModel]
Batch = dict[str, Tensor]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the blocks that were looked at."""
    seen: list[int] = []
    work = _LookPass.work

    def note(self: _LookPass, index: int, block: nn.Module) -> None:
        seen.append(index)
        work(self, index, block)

    monkeypatch.setattr(_LookPass, "work", note)
    return seen


def cut(dense: PreTrainedModel, batches: list[Batch], *args: Any, cache: bool = True) -> Any:
    model = copy.deepcopy(dense)
    prune(model, ExpertDrop(*args), batches, dense_cache=cache, shrink=False)
    return dict(model.named_parameters())


def dense_last(make_model: MakeModel) -> PreTrainedModel:
    """A mixture whose last block is dense."""
    config = make_model("qwen3_moe").config
    config.mlp_only_layers = [config.num_hidden_layers - 1]
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("build", [lambda make: make("mixtral"), dense_last])
def test_another_ratio_is_cut_without_another_pass(
    build: Callable[[MakeModel], PreTrainedModel],
    looks: list[int],
    make_model: MakeModel,
    padded: Batch,
) -> None:
    dense = build(make_model)
    blocks = len(decoder_blocks(dense)[1])
    cut(dense, [padded], 0.25)
    assert looks == list(range(blocks))
    again = cut(dense, [padded], 0.5)
    assert len(looks) == blocks
    expected = cut(dense, [padded], 0.5, cache=False)
    assert len(looks) == 2 * blocks
    assert all(torch.equal(value, expected[name]) for name, value in again.items())


@pytest.mark.parametrize("what", ["criterion", "text", "weights", "reconstruction"])
def test_what_differs_otherwise_is_measured(
    what: str, looks: list[int], make_model: MakeModel, padded: Batch
) -> None:
    dense, kind = make_model("mixtral"), "reconstruction" if what == "reconstruction" else "reap"
    cut(dense, [padded], 0.25, None, kind)
    before = len(looks)
    if what == "criterion":
        kind = "gate"
    elif what == "text":
        padded = {**padded, "input_ids": padded["input_ids"].roll(1, 0)}
    elif what == "weights":
        next(iter(find_experts(decoder_blocks(dense)[1][0]).values())).down_proj.data[0] *= 2
    cut(dense, [padded], 0.5, None, kind)
    assert len(looks) == 2 * before


def test_a_damaged_file_is_measured_again(
    looks: list[int], make_model: MakeModel, padded: Batch, own_cache: Path
) -> None:
    dense = make_model("mixtral")
    expected = cut(dense, [padded], 0.25)
    (file,) = (own_cache / "dense").glob("*/*.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    again = cut(dense, [padded], 0.25)
    assert len(looks) == 2 * len(decoder_blocks(dense)[1])
    assert all(torch.equal(value, expected[name]) for name, value in again.items())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (DepthByLoss(1, "both"), DepthByLoss(2, "both", rescore=True)),
        (Budget(0.95, neurons=[0.25, 0.5]), Budget(0.9, neurons=[0.25, 0.5])),
    ],
)
def test_another_size_is_settled_without_another_measurement(
    first: Pruner,
    second: Pruner,
    make_model: MakeModel,
    padded: Batch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[int] = []
    measure = Outputs.measure

    def note(self: Outputs, variations: list[Variation]) -> Any:
        measured.append(len(variations))
        return measure(self, variations)

    monkeypatch.setattr(Outputs, "measure", note)
    models = [make_model("llama") for _ in range(3)]
    prune(models[0], first, [padded], dense_cache=True)
    count, measured[:] = measured[0], []
    prune(models[1], second, [padded], dense_cache=True)
    assert measured[0] == 0
    kept, measured[:] = measured[1:], []
    prune(models[2], second, [padded], dense_cache=False)
    assert measured == [count, *kept]  # what the second run measures after its first choice
    assert models[1].state_dict().keys() == models[2].state_dict().keys()
    for name, weight in models[1].state_dict().items():
        assert weight.equal(models[2].state_dict()[name]), name
