"""A budget: the best of all models that fit, by the sum of what each block costs alone."""

import copy
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from prunelit import InputError, prune, save_pretrained
from prunelit.data.batches import as_batches, choose_tokens, hold_out
from prunelit.pruners import Budget, Heads, Neuron
from prunelit.pruning.prune import _BlockProgress

from .budgets import Noting, divergence

MakeModel = Callable[..., PreTrainedModel]
SHARES = [0.25, 0.5]


@pytest.fixture
def spread(make_model: MakeModel) -> PreTrainedModel:
    """A Llama whose blocks matter more, so that options differ."""
    model = make_model("llama")
    with torch.no_grad():
        for number, block in enumerate(model.model.layers):
            block.self_attn.o_proj.weight.mul_(1 + number)
            block.mlp.down_proj.weight.mul_(3 - number)
    return model


def test_each_option_is_measured_in_each_block(
    spread: PreTrainedModel, padded: dict[str, Tensor]
) -> None:
    pruner, model = Noting(0.9, neurons=SHARES, blocks=1), copy.deepcopy(spread)
    prune(model, pruner, [padded])
    read, (held,) = hold_out(as_batches([padded], 1), pruner.held_out)
    assert 1 <= len(held["input_ids"]) < len(read[0]["input_ids"])
    place = iter(pruner.found[0])
    for index in range(3):
        for option in (Heads(count=1), *map(Neuron, SHARES)):
            whole = copy.deepcopy(spread)
            prune(whole, option, read, shrink=False)
            if index:
                # Of the others, what is read before is changed too: only the first block is exact.
                next(place)
                continue
            one = copy.deepcopy(spread)
            one.model.layers[0].load_state_dict(whole.model.layers[0].state_dict())
            assert next(place) == pytest.approx(divergence(spread, one, held), rel=1e-3)
        without = copy.deepcopy(spread)
        for weight in without.model.layers[index].parameters():
            if weight.ndim > 1:
                weight.data.zero_()
        assert next(place) == pytest.approx(divergence(spread, without, held), rel=1e-3)


@pytest.mark.parametrize(
    ("share", "uniform"), [(0.9, True), (0.6, True), (0.9, False), (0.75, False), (0.6, False)]
)
def test_the_best_model_that_fits_is_taken(
    share: float, uniform: bool, spread: PreTrainedModel, padded: dict[str, Tensor]
) -> None:
    dense = copy.deepcopy(spread)
    pruner = Noting(share, neurons=SHARES, blocks=2, uniform=uniform, held_out=0)
    report = prune(spread, pruner, [padded])
    costs = torch.tensor(pruner.found[0]).view(3, 4).tolist()
    block = sum(weight.numel() for weight in dense.model.layers[0].parameters())
    heads_of = sum(
        getattr(dense.model.layers[0].self_attn, f"{name}_proj").weight.numel() for name in "qkvo"
    )
    neurons_of = sum(weight.numel() for weight in dense.model.layers[0].mlp.parameters())
    pairs = [*itertools.product((0, 1), range(3))]
    found = []
    for options in itertools.product([*pairs, None], repeat=3):
        kept = [own for own in options if own is not None]
        if not kept or (uniform and len({*kept}) > 1):
            continue
        size, kl = dense.num_parameters() - 3 * block, 0.0
        for own, cost in zip(options, costs, strict=True):
            if own is None:
                kl += cost[3]
                continue
            heads, neurons = own
            size += block - heads * heads_of // 2 - int(neurons_of * [0, *SHARES][neurons])
            kl += (cost[0] if heads else 0) + (cost[neurons] if neurons else 0)
        if size <= share * dense.num_parameters():
            found.append((kl, -size, options))
    kl, size, options = min(found, key=lambda own: own[:2])
    assert pruner.choice.options == options
    assert pruner.choice.kl == pytest.approx(kl)
    assert spread.num_parameters() == -size == pruner.choice.parameters
    assert report.removed is not None
    if uniform:
        assert report.removed["fields"] == {}
    assert pruner.found[1] == [pytest.approx(divergence(dense, spread, padded), rel=1e-3)]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_blocks_have_their_own_widths(
    name: str,
    make_model: MakeModel,
    padded: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = make_model(name)
    with caplog.at_level(logging.INFO):
        report = prune(
            model, Budget(0.85, neurons=[0.25, 0.5, 0.75], blocks=0, uniform=False), [padded]
        )
    assert report.removed is not None
    assert report.removed["fields"]
    assert "% of the neurons" in caplog.text
    save_pretrained(model, tokenizer, tmp_path, report)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert again(**padded).logits.equal(model(**padded).logits)


def test_the_folder_is_stock_and_the_choice_is_told(
    spread: PreTrainedModel,
    padded: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        report = prune(spread, Budget(0.7, neurons=SHARES, blocks=1), [padded])
    assert "parameters (" in caplog.text
    assert "the KL divergence was foretold as" in caplog.text
    save_pretrained(spread, tokenizer, tmp_path, report)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert stock(**padded).logits.equal(spread(**padded).logits)


def test_outputs_are_compared_at_some_tokens(
    spread: PreTrainedModel, padded: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    dense, rest = copy.deepcopy(spread), {"neurons": SHARES, "blocks": 1, "held_out": 0}
    every, some = Noting(0.9, tokens=None, **rest), Noting(0.9, tokens=5, **rest)
    prune(copy.deepcopy(dense), every, [padded])
    ticks: list[tuple[int, int]] = []
    with caplog.at_level(logging.INFO), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_BlockProgress, "count", lambda bar, *numbers: ticks.append(numbers))
        report = prune(spread, some, [padded])
    (batch,) = as_batches([padded], 1)
    (chosen,) = choose_tokens([batch], 5, followed=False)
    assert int(chosen.sum()) == 5
    assert some.found[0] != pytest.approx(every.found[0], rel=1e-3)
    kl = divergence(dense, spread, padded, chosen)
    assert some.found[1] == [pytest.approx(kl, rel=1e-3)]
    tokens = int(padded["attention_mask"].sum())
    assert f"Noting compares outputs at 5 of {tokens} tokens." in caplog.text
    found = {"kl_foretold": some.choice.kl, "kl": some.found[1][0]}
    assert report.as_dict()["compared"] == [{"method": "Noting", "tokens": 5} | found]
    ends = [place for place, (done, total) in enumerate(ticks) if done == total]
    assert len(ends) == 2  # two measurements, each counted to its end
    assert all(1 + done == later for (done, _), (later, _) in itertools.pairwise(ticks[: ends[0]]))


class Timed(Budget):
    """Take times from a table: 10 s outside of the blocks, 100 s in a block."""

    asked = 0

    def times(self, model: PreTrainedModel) -> list[float]:
        type(self).asked += 1
        return [10.0, 100.0, 70.0, 80.0, 50.0]


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("most", [290, 235, 130])
def test_the_best_model_that_is_fast_enough_is_taken(
    most: int, uniform: bool, spread: PreTrainedModel, padded: dict[str, Tensor]
) -> None:
    class Both(Noting, Timed):
        pass

    # A second more: a block has 256 units of time, to which sums are rounded.
    speed = 2 / (most + 1)
    speeds = {"tokens_per_second": speed, "cached": 16, "batch_size": 2}
    pruner = Both(neurons=SHARES, blocks=2, uniform=uniform, **speeds)
    report = prune(spread, pruner, [padded])
    costs = torch.tensor(pruner.found[0]).view(3, 4).tolist()
    found = []
    for options in itertools.product([*itertools.product((0, 1), range(3)), None], repeat=3):
        kept = [own for own in options if own is not None]
        if not kept or (uniform and len({*kept}) > 1):
            continue
        seconds = 10 + sum(100 - 30 * heads - [0, 20, 50][neurons] for heads, neurons in kept)
        kl = sum(
            cost[3] if own is None else cost[0] * own[0] + (cost[own[1]] if own[1] else 0)
            for own, cost in zip(options, costs, strict=True)
        )
        if seconds <= most + 1:
            found.append((kl, options, seconds))
    kl, options, seconds = min(found)
    assert pruner.choice.options == options
    assert pruner.choice.kl == pytest.approx(kl)
    assert pruner.choice.parameters == spread.num_parameters()
    (told,) = report.as_dict()["compared"]
    assert told["speed_dense"] == pytest.approx(2 / 310, rel=1e-2)
    assert told["speed_foretold"] == pytest.approx(2 / seconds, rel=2e-2)


def test_a_speed_is_reached_with_measured_times(
    spread: PreTrainedModel, padded: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        prune(spread, Budget(blocks=0, tokens_per_second=1e-3, cached=16), [padded])
    assert "tokens a second" in caplog.text
    assert "by the times of their parts on this machine" in caplog.text


def test_times_are_kept_on_disk_with_what_they_depend_on(
    make_model: MakeModel,
    padded: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PRUNELIT_CACHE", str(tmp_path))
    monkeypatch.setattr(Timed, "asked", 0)

    def run(**options: Any) -> int:
        pruner = Timed(
            neurons=SHARES, blocks=1, **{"tokens_per_second": 0.005, "cached": 16, **options}
        )
        prune(make_model("llama"), pruner, [padded], dense_cache=True)
        return Timed.asked

    assert run() == 1
    assert run(tokens_per_second=0.006) == 1
    assert run(cached=32) == 2
    with monkeypatch.context() as patch:
        patch.setattr("prunelit.pruning.saved_look.platform.node", lambda: "another machine")
        assert run() == 3
    assert run() == 3


def test_a_speed_is_refused_where_it_says_nothing(
    make_model: MakeModel, padded: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama")
    with pytest.raises(InputError, match=r"the fastest model of them writes .* on this machine"):
        prune(model, Timed(tokens_per_second=1.0, cached=16, blocks=1, neurons=SHARES), [padded])
    with pytest.raises(InputError, match="its blocks wait in"):
        prune(
            model,
            Budget(tokens_per_second=1.0, cached=16, blocks=1),
            [padded],
            offload_to=torch.device("cpu"),
        )
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(InputError, match="measured in one process but there are 2"):
        Budget(tokens_per_second=1.0, cached=16, blocks=1).check(model)


def test_bytes_are_those_of_the_parameters(
    spread: PreTrainedModel, padded: dict[str, Tensor]
) -> None:
    most = int(0.8 * 4 * spread.num_parameters())
    prune(spread, Budget(bytes=most), [padded])
    assert 4 * spread.num_parameters() <= most


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parameters": 1.0}, r"`parameters` in \(0, 1\)"),
        ({"blocks": -1}, "`blocks` of at least 0"),
        ({"heads": [0]}, "numbers of at least 1 in `heads`"),
        ({"neurons": [1.0]}, r"shares in \(0, 1\) in `neurons`"),
        ({"bytes": 10**9}, "`bytes` below the .* of the model in float32 but got 1,000,000,000"),
        ({"parameters": 0.01}, "the smallest model of them has"),
        ({"blocks": 3}, "below the 3 blocks"),
        ({"heads": [2]}, "`count` below the 2 groups"),
        ({"held_out": 1.0}, r"`held_out` in \[0, 1\)"),
        ({"held_out": 0.99}, "`held_out: 0.99` takes of 6 but there is none"),
        ({"tokens_per_second": 0.0}, "`tokens_per_second` above 0"),
        ({"tokens_per_second": 1.0, "bytes": 9}, "`bytes` or `tokens_per_second`"),
        ({"tokens_per_second": 1.0, "cached": 9000}, "has 9008"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused(
    arguments: dict[str, Any],
    message: str,
    make_model: MakeModel,
    padded: dict[str, Tensor],
) -> None:
    with pytest.raises(InputError, match=message):
        prune(make_model("llama"), Budget(**{"blocks": 1, **arguments}), [padded])


def test_blocks_of_different_sizes_are_refused(
    make_model: MakeModel, padded: dict[str, Tensor]
) -> None:
    with pytest.raises(InputError, match="blocks of one size"):
        prune(make_model("deepseek_v3"), Budget(heads=[], neurons=[0.5], blocks=1), [padded])
