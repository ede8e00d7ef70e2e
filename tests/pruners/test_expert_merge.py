"""Merged experts are means of those whose outputs are alike, and the folder is stock."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunelit import prune
from prunelit.errors import InputError
from prunelit.models.loading import load_pretrained
from prunelit.models.saving import save_pretrained
from prunelit.pruners import ExpertMerge

from .mixtures import BUILD, Batch, MakeModel, every_family, experts_of, grouped

# Experts of these families are silu(gate) * up, without biases.
PLAIN = ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "glm4_moe", "olmoe"]


@torch.no_grad()
def merged_by_hand(
    dense: PreTrainedModel, batch: Batch, block: int, number: int, groups: int
) -> tuple[list[int], dict[str, Tensor]]:
    """The experts that stay, and the tensors of merged experts, token by token."""
    _, experts = experts_of(dense)[block]
    seen: list[tuple[Tensor, ...]] = []
    handle = experts.register_forward_pre_hook(lambda _, args: seen.append(args))
    dense(**batch)
    handle.remove()
    ((hidden, chosen, _),) = seen
    count = len(experts.down_proj)
    real = batch["attention_mask"].flatten().nonzero().flatten().tolist()
    tokens = [sum(e in chosen[t].tolist() for t in real) for e in range(count)]
    outputs = torch.empty(len(real), count, hidden.shape[1], dtype=torch.float64)
    for place, token in enumerate(real):
        for e in range(count):
            gate, up = (experts.gate_up_proj[e] @ hidden[token]).chunk(2)
            outputs[place, e] = experts.down_proj[e] @ (F.silu(gate) * up)
    size = count // groups
    gone: list[int] = []
    for start in range(0, count, size):
        own = sorted(range(start, start + size), key=lambda e: tokens[e])
        gone += own[: number // groups]
    stay = [e for e in range(count) if e not in gone]
    members = {e: [e] for e in stay}
    for e in gone:
        near = [other for other in stay if other // size == e // size]
        change = [float((outputs[:, e] - outputs[:, other]).square().sum()) for other in near]
        members[near[change.index(min(change))]].append(e)
    tensors: dict[str, Tensor] = {}
    for name in ("gate_up_proj", "down_proj"):
        value = getattr(experts, name)
        tensors[name] = torch.stack([
            sum(tokens[e] * value[e] for e in own) / sum(tokens[e] for e in own)
            for own in members.values()
        ])  # fmt: skip
    return stay, tensors


@pytest.mark.parametrize("name", PLAIN)
def test_the_means_are_those_of_a_computation_by_hand(
    name: str, make_model: MakeModel, padded: Batch
) -> None:
    dense = BUILD[name](make_model)
    model = copy.deepcopy(dense)
    prune(model, ExpertMerge(count=2), [padded])
    groups = 2 if name == "deepseek_v3" else 1
    for block, ((before, _), (after, experts)) in enumerate(
        zip(experts_of(dense), experts_of(model), strict=True)
    ):
        stay, tensors = merged_by_hand(dense, padded, block, 2, groups)
        for part, expected in tensors.items():
            torch.testing.assert_close(getattr(experts, part), expected, atol=1e-6, rtol=1e-5)
        assert torch.equal(after.gate.weight, before.gate.weight[stay])


@every_family
def test_the_folder_is_stock(
    name: str, make_model: MakeModel, padded: Batch, tmp_path: Path, tokenizer: Any
) -> None:
    model = BUILD[name](make_model)
    before = len(experts_of(model)[0][1].down_proj)
    report = prune(model, ExpertMerge(count=2), [padded])
    assert report.removed is not None
    assert report.removed["experts"] == before - 2
    ids = padded["input_ids"]
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    save_pretrained(model, tokenizer, tmp_path / "small", report)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    again = load_pretrained(str(tmp_path / "small"))[0]
    with torch.no_grad():
        assert torch.equal(stock(ids, use_cache=False).logits, logits)
        assert torch.equal(again(ids, use_cache=False).logits, logits)


def test_equal_experts_merge_without_a_change(make_model: MakeModel, padded: Batch) -> None:
    dense = make_model("mixtral")
    for mlp, experts in experts_of(dense):
        for value in (experts.gate_up_proj, experts.down_proj):
            value.data[1:] = value.data[:1]
        mlp.gate.weight.data[1:] = mlp.gate.weight.data[:1]
    model = copy.deepcopy(dense)
    prune(model, ExpertMerge(0.5), [padded])
    with torch.no_grad():
        torch.testing.assert_close(model(**padded).logits, dense(**padded).logits)


def test_an_expert_that_no_token_reaches_changes_nothing(
    make_model: MakeModel, padded: Batch
) -> None:
    dense = make_model("gpt_oss")
    for mlp, _ in experts_of(dense):
        mlp.router.bias.data[2] = -1e4
    model = copy.deepcopy(dense)
    prune(model, ExpertMerge(count=1), [padded])
    with torch.no_grad():
        torch.testing.assert_close(model(**padded).logits, dense(**padded).logits)


def test_a_later_round_merges_more(make_model: MakeModel, padded: Batch) -> None:
    model = make_model("qwen2_moe")
    pruner = ExpertMerge(0.5)
    prune(model, pruner.scale(0.5), [padded], shrink=False)
    first = [{i for i, x in enumerate(e.down_proj) if not x.any()} for _, e in experts_of(model)]
    report = prune(model, pruner, [padded])
    assert report.removed is not None
    kept = report.removed["kept_experts"].values()
    assert {len(own) for own in first} == {1}
    assert all(not before & set(after) for before, after in zip(first, kept, strict=True))
    assert {len(own) for own in kept} == {2}


def test_what_cannot_be_is_refused(make_model: MakeModel, padded: Batch) -> None:
    with pytest.raises(InputError, match=r"a multiple of 2 experts, .* but 5 of 8"):
        prune(grouped(make_model), ExpertMerge(count=3), [padded])
