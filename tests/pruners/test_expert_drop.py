"""A model without some experts is the dense model whose router may not choose them."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunelit import prune
from prunelit.errors import InputError
from prunelit.models.fewer_experts import drop_experts_
from prunelit.models.loading import load_pretrained
from prunelit.models.saving import save_pretrained
from prunelit.models.streaming import stream
from prunelit.pruners import ExpertDrop, ExpertMerge
from prunelit.pruners.expert_pruner import ExpertPruner

from ..families.tiny import tiny_model
from .mixtures import BUILD, Batch, MakeModel, every_family, experts_of, grouped, llama4

CRITERIA = ["reap", "frequency", "gate", "output_norm"]


@torch.no_grad()
def barred(dense: PreTrainedModel, gone: list[set[int]], ids: Tensor) -> Tensor:
    """Logits of the dense model, whose routers give dropped experts no chance."""
    own = F.linear
    routers = {}
    for (mlp, experts), places in zip(experts_of(dense), gone, strict=True):
        router = mlp.router if hasattr(mlp, "router") else mlp.gate
        routers[id(router.weight)] = (sorted(places), router)
        assert len(router.weight) == len(experts.down_proj)

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        result = own(x, weight, bias)
        if id(weight) in routers:
            result = result.clone()
            result[..., routers[id(weight)][0]] = -1e4
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", linear)
        patch.setattr(torch.nn.functional, "linear", linear)
        return dense(ids, use_cache=False).logits


def find_gone(dense: PreTrainedModel, small: PreTrainedModel) -> list[set[int]]:
    """Experts of the dense model that the small one lacks, block by block."""
    gone = []
    for (_, before), (_, after) in zip(experts_of(dense), experts_of(small), strict=True):
        kept = [tuple(x.flatten().tolist()) for x in after.down_proj]
        gone.append(
            {i for i, x in enumerate(before.down_proj) if tuple(x.flatten().tolist()) not in kept}
        )
    return gone


@pytest.mark.parametrize("name", [*BUILD, "llama4"])
def test_it_is_the_dense_model_that_may_not_choose_them(
    name: str, make_model: MakeModel, padded: Batch, tmp_path: Path, tokenizer: Any
) -> None:
    model = (BUILD | {"llama4": llama4})[name](make_model)
    dense = copy.deepcopy(model)
    before = len(experts_of(dense)[0][1].down_proj)
    report = prune(model, ExpertDrop(0.25), [padded])
    assert report.removed is not None
    assert report.removed["experts"] == before - before // 4
    gone = find_gone(dense, model)
    assert {len(places) for places in gone} == {before // 4}
    ids = padded["input_ids"]
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    torch.testing.assert_close(logits, barred(dense, gone, ids), atol=2e-5, rtol=1e-4)
    fewer = sum(p.numel() for p in dense.parameters()) - sum(p.numel() for p in model.parameters())
    # Correction biases are buffers or parameters without a share in the weights.
    removed = sum(tensor.removed or 0 for tensor in report.tensors)
    assert 0 < removed <= fewer
    assert report.sparsity == pytest.approx(removed / sum(t.size for t in report.tensors))
    save_pretrained(model, tokenizer, tmp_path / "small", report)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    with torch.no_grad():
        assert torch.equal(stock(ids, use_cache=False).logits, logits)
    again = load_pretrained(str(tmp_path / "small"))[0]
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    start = ids[-1:]
    cached, plain = (again.generate(start, use_cache=c, **options) for c in (True, False))
    assert torch.equal(cached, plain)


@torch.no_grad()
def scores_by_hand(model: PreTrainedModel, criterion: str, batch: Batch, block: int) -> Tensor:
    """(E,) of a block of the dense model, token by token."""
    _, experts = experts_of(model)[block]
    seen: list[tuple[Tensor, ...]] = []
    handle = experts.register_forward_pre_hook(lambda _, args: seen.append(args))
    model(**batch)
    handle.remove()
    ((hidden, chosen, shares),) = seen
    count = len(experts.down_proj)
    values: list[list[float]] = [[] for _ in range(count)]
    for token in batch["attention_mask"].flatten().nonzero().flatten().tolist():
        for expert, share in zip(chosen[token].tolist(), shares[token].tolist(), strict=True):
            gate, up = (experts.gate_up_proj[expert] @ hidden[token]).chunk(2)
            norm = float((experts.down_proj[expert] @ (F.silu(gate) * up)).norm())
            by = {"reap": share * norm, "frequency": 1.0, "gate": share, "output_norm": norm}
            values[expert].append(by[criterion])
    if criterion == "reap":
        return torch.tensor([sum(own) / max(len(own), 1) for own in values])
    return torch.tensor([sum(own) for own in values])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_lowest_score_of_a_sum_over_real_tokens_goes(
    criterion: Any, make_model: MakeModel, padded: Batch
) -> None:
    model = make_model("qwen3_moe")
    dense = copy.deepcopy(model)
    pruner = ExpertDrop(count=2, ratio=0.9, criterion=criterion)
    prune(model, pruner, [padded])
    for block, gone in enumerate(find_gone(dense, model)):
        expected = scores_by_hand(dense, criterion, padded, block)
        assert gone == set(expected.argsort()[:2].tolist())


@torch.no_grad()
def test_outputs_hold_the_shares_that_inputs_hold(make_model: MakeModel, padded: Batch) -> None:
    model = llama4(make_model)
    dense = copy.deepcopy(model)
    prune(model, ExpertDrop(count=2), [padded])
    for block, gone in enumerate(find_gone(dense, model)):
        _, experts = experts_of(dense)[block]
        seen: list[Tensor] = []
        handle = experts.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(*args))
        dense(**padded)
        handle.remove()
        real = padded["attention_mask"].flatten().bool()
        read = seen[0].view(4, len(real), -1)[:, real]
        gate, up = (read @ experts.gate_up_proj).chunk(2, -1)
        norms = ((F.silu(gate) * up) @ experts.down_proj).norm(dim=-1)
        scores = norms.sum(1) / read.any(-1).sum(1).clamp(min=1)
        assert gone == set(scores.argsort()[:2].tolist())


@pytest.mark.parametrize("pruner", [ExpertDrop(criterion="gate"), ExpertMerge()])
def test_methods_that_need_shares_are_refused_without(
    pruner: ExpertPruner, make_model: MakeModel, padded: Batch
) -> None:
    with pytest.raises(InputError, match=r"does not see their shares: take `ExpertDrop` with ano"):
        prune(llama4(make_model), pruner, [padded])


def small_mixtures(dense: PreTrainedModel, gone: tuple[int, ...]) -> list[nn.Module]:
    """The mixture of each block in a model of its own that lacks these experts."""
    model = copy.deepcopy(dense)
    for _, experts in experts_of(model):
        experts.down_proj[list(gone)] = 0
    kept = [e for e in range(len(experts_of(dense)[0][1].down_proj)) if e not in gone]
    found = [one for own in drop_experts_(model).values() for one in own.values()]
    assert all(one == kept for one in found)
    assert bool(found) == bool(gone)
    return [mlp for mlp, _ in experts_of(model)]


@torch.no_grad()
def losses_by_hand(
    dense: PreTrainedModel, sets: list[tuple[int, ...]], batch: Batch
) -> list[list[float]]:
    """Squared error of each set in each block, from smaller models that read the dense streams."""
    seen: list[tuple[Tensor, Tensor]] = []
    handles = [
        mlp.register_forward_hook(
            lambda _, args, output: seen.append(
                (args[0], output if isinstance(output, Tensor) else output[0])
            )
        )
        for mlp, _ in experts_of(dense)
    ]
    dense(**batch)
    for handle in handles:
        handle.remove()
    real = batch["attention_mask"].bool()
    found: list[list[float]] = [[] for _ in seen]
    for gone in sets:
        for own, mlp, (x, expected) in zip(found, small_mixtures(dense, gone), seen, strict=True):
            output = mlp(x)
            output = output if isinstance(output, Tensor) else output[0]
            change = output.view(expected.shape)[real] - expected[real]
            own.append(float(change.double().square().sum()))
    return found


@every_family
def test_the_set_that_changes_the_output_least_goes(
    name: str, make_model: MakeModel, padded: Batch
) -> None:
    dense = BUILD[name](make_model)
    count, groups = len(experts_of(dense)[0][1].down_proj), 2 if name == "deepseek_v3" else 1
    size = count // groups
    sets = [
        one
        for one in itertools.combinations(range(count), 2)
        if groups == 1 or len({expert // size for expert in one}) == 2
    ]
    expected = losses_by_hand(dense, sets, padded)
    pruner = ExpertDrop(count=2, criterion="reconstruction")
    seen: list[tuple[list[tuple[int, ...]], list[float]]] = []
    decide = pruner.decide

    def note(model: PreTrainedModel, probes: Any) -> bool:
        losses = [probe.statistic for own in probes for probe in own.values()]
        seen.extend((one.sets, one.value.tolist()) for one in losses)
        return decide(model, probes)

    pruner.decide = note
    model = copy.deepcopy(dense)
    prune(model, pruner, [padded])
    gone = find_gone(dense, model)
    assert len(seen) == len(expected) == len(gone)
    for (own, values), losses, places in zip(seen, expected, gone, strict=True):
        assert own == sets
        assert values == pytest.approx(losses, rel=1e-3)
        assert places == set(sets[losses.index(min(losses))])


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_one_expert_after_the_other_goes_if_there_are_many_sets(
    name: str, make_model: MakeModel, padded: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunelit.pruners.expert_drop._SETS", 3)
    dense = BUILD[name](make_model)
    (singles, *_), count = losses_by_hand(dense, [(e,) for e in range(4)], padded), 4
    first = singles.index(min(singles))
    pairs = [(first, e) for e in range(count) if e != first]
    second, *_ = losses_by_hand(dense, pairs, padded)
    model = copy.deepcopy(dense)
    prune(model, ExpertDrop(0.5, criterion="reconstruction"), [padded])
    assert find_gone(dense, model)[0] == set(pairs[second.index(min(second))])


def test_groups_lose_the_same_number_also_one_by_one(
    make_model: MakeModel, padded: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunelit.pruners.expert_drop._SETS", 3)
    dense = grouped(make_model)
    model = copy.deepcopy(dense)
    prune(model, ExpertDrop(0.5, criterion="reconstruction"), [padded])
    for places in find_gone(dense, model):
        assert sum(place < 4 for place in places) == sum(place >= 4 for place in places) == 2


def test_a_router_of_another_form_is_refused(make_model: MakeModel, padded: Batch) -> None:
    model = make_model("mixtral")
    router = experts_of(model)[0][0].gate
    own = router.forward

    def normalised(x: Tensor) -> Any:
        kept, router.weight = router.weight, nn.Parameter(router.weight / router.weight.norm())
        try:
            return own(x)
        finally:
            router.weight = kept

    router.forward = normalised
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(InputError, match=r"routes to 'mlp.experts' in a form of its own"):
        prune(model, ExpertDrop(0.5, criterion="reconstruction"), [padded])
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_an_expert_is_computed_once_for_a_batch(
    make_model: MakeModel, padded: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = make_model("qwen3_moe")
    maps = [expert for _, experts in experts_of(dense) for expert in experts.down_proj]
    own, seen = F.linear, [0]

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen[-1] += any(weight is one or weight._base is one for one in last)
        return own(x, weight, bias)

    monkeypatch.setattr(F, "linear", linear)
    for batches in (3, 5):
        model = copy.deepcopy(dense)
        last = [experts.down_proj for _, experts in experts_of(model)]
        prune(model, ExpertDrop(0.25), [padded] * batches, shrink=False)
        seen.append(0)
    assert seen[1] - seen[0] == 2 * len(maps)  # the checks of a run are the same in both


def test_experts_that_compute_something_else_are_refused(
    make_model: MakeModel, padded: Batch
) -> None:
    model = make_model("mixtral")
    experts = experts_of(model)[1][1]
    own, before = experts.forward, experts.down_proj.clone()
    experts.forward = lambda *args: 1.1 * own(*args)
    with pytest.raises(InputError, match="MixtralExperts computes something else than its maps"):
        prune(model, ExpertDrop(0.25), [padded])
    assert torch.equal(experts.down_proj, before)


def test_random_experts_need_no_text_and_have_a_seed(make_model: MakeModel) -> None:
    def gone(seed: int) -> list[set[int]]:
        model, dense = make_model("mixtral"), make_model("mixtral")
        prune(model, ExpertDrop(0.5, criterion="random", seed=seed))
        return find_gone(dense, model)

    assert gone(0) == gone(0)
    assert len({str(gone(seed)) for seed in range(4)}) > 1
    assert {len(places) for places in gone(0)} == {2}


@pytest.mark.parametrize("criterion", ["reap", "reconstruction"])
def test_a_later_round_drops_more(criterion: Any, make_model: MakeModel, padded: Batch) -> None:
    model, dense = make_model("qwen2_moe"), make_model("qwen2_moe")
    pruner = ExpertDrop(0.5, criterion=criterion)
    prune(model, pruner.scale(0.5), [padded], shrink=False)
    first = [{i for i, x in enumerate(e.down_proj) if not x.any()} for _, e in experts_of(model)]
    prune(model, pruner, [padded])
    assert {len(places) for places in first} == {1}
    for before, after in zip(first, find_gone(dense, model), strict=True):
        assert before < after


def test_every_group_loses_the_same_number(make_model: MakeModel, padded: Batch) -> None:
    dense = grouped(make_model)
    model = copy.deepcopy(dense)
    prune(model, ExpertDrop(count=4), [padded])
    for places in find_gone(dense, model):
        assert sum(place < 4 for place in places) == sum(place >= 4 for place in places) == 2


def test_blocks_that_wait_in_files(make_model: MakeModel, padded: Batch) -> None:
    here, away = make_model("qwen2_moe"), make_model("qwen2_moe")
    stream(away)
    for model in (here, away):
        prune(model, ExpertDrop(0.25), [padded])
    with torch.no_grad():
        expected = here(**padded).logits
        assert torch.equal(away(**padded).logits, expected)


@pytest.mark.parametrize(("pruner", "build", "match"), [
    (ExpertDrop(0.25), lambda make: make("llama"), r"a mixture with fused experts but Llama"),
    (ExpertDrop(0.75), lambda make: make("mixtral"), r"at least 2 experts .* 1 of 4 are"),
    (ExpertDrop(count=9), lambda make: make("mixtral"), r"at least 2 experts .* 0 of 4 are"),
    (ExpertDrop(count=3), lambda _: tiny_model("aria_text"), r"at least 2 experts .* 1 of 4 are"),
    (ExpertDrop(count=3), grouped, r"a multiple of 2 experts, .* but 5 of 8"),
    (ExpertDrop(count=6), grouped, r"at least 4 experts .* 2 of 8"),
])  # fmt: skip
def test_what_cannot_be_is_refused(
    pruner: ExpertDrop, build: Any, match: str, make_model: MakeModel, padded: Batch
) -> None:
    model = build(make_model)
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(InputError, match=match):
        prune(model, pruner, [padded])
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("options", [{"ratio": 1.0}, {"count": -1}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"Expected `(ratio|count)`"):
        ExpertDrop(**options)
