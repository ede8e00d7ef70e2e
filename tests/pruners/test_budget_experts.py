"""A budget in a mixture: the number of experts is one more option."""

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
from prunelit.pruners import Budget, ExpertDrop, Magnitude
from prunelit.pruners import Sequence as Steps
from prunelit.sparsity import Unstructured

from .budgets import Noting, divergence

MakeModel = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_a_block_is_measured_as_it_will_be_with_fewer_experts(
    name: str, make_model: MakeModel, padded: dict[str, Tensor]
) -> None:
    dense, model = make_model(name), make_model(name)
    pruner = Noting(0.95, heads=[], neurons=[], experts=[1, 2], blocks=0, held_out=0)
    prune(model, pruner, [padded])
    found = iter(pruner.found[0])
    smaller = [make_model(name), make_model(name)]
    for count, one in enumerate(smaller, 1):
        prune(one, ExpertDrop(count=count), [padded])
    for index in range(3):
        for one in smaller:
            mixed = copy.deepcopy(dense)
            mixed.model.layers[index].mlp = one.model.layers[index].mlp
            assert next(found) == pytest.approx(divergence(dense, mixed, padded), rel=1e-3)


@pytest.mark.parametrize("share", [0.9, 0.75, 0.6])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_the_best_model_that_fits_is_taken(
    name: str,
    share: float,
    make_model: MakeModel,
    padded: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = make_model(name)
    before = model.num_parameters()
    pruner = Noting(share, heads=[1], neurons=[0.3], experts=[1, 2], blocks=1)
    with caplog.at_level(logging.INFO):
        report = prune(model, pruner, [padded])
    choice = pruner.choice
    assert model.num_parameters() == choice.parameters <= share * before
    costs = torch.tensor(pruner.found[0]).view(3, 5).tolist()
    found = []
    for own in itertools.product((0, 1), (0, 1), range(3)):
        for gone in (None, 0, 1, 2):
            smaller = count_left(make_model(name), *own, gone)
            if smaller <= share * before:
                chosen = [own[0], own[1], own[2] == 1, own[2] == 2]
                kl = sum(
                    row[4]
                    if index == gone
                    else sum(c for c, on in zip(row, chosen, strict=False) if on)
                    for index, row in enumerate(costs)
                )
                found.append((kl, smaller, own[2]))
    kl, size, experts = min(found, key=lambda one: (one[0], -one[1]))
    assert (choice.kl, choice.parameters) == (pytest.approx(kl), size)
    assert choice.experts == experts
    told = report.as_dict()["compared"][0]
    assert (told["kl"] is None) == (experts > 0) == ("experts of each mixture" in caplog.text)
    save_pretrained(model, tokenizer, tmp_path, report)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert stock(**padded).logits.equal(model(**padded).logits)


def count_left(
    model: PreTrainedModel, heads: int, neurons: int, experts: int, block: int | None
) -> int:
    """Count the parameters of a model of a smaller configuration."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers -= block is not None
    size = config.hidden_size // config.num_attention_heads
    groups = config.num_key_value_heads
    config.head_dim = getattr(config, "head_dim", None) or size
    config.num_attention_heads -= heads * config.num_attention_heads // groups
    config.num_key_value_heads -= heads
    names = [
        name
        for name in ("num_local_experts", "num_experts")
        if isinstance(getattr(config, name, None), int)
    ]
    setattr(config, names[0], getattr(config, names[0]) - experts)
    if neurons:  # experts keep a multiple of 8; the width of a shared one is no multiple of theirs
        if hasattr(config, "moe_intermediate_size"):
            config.moe_intermediate_size, config.shared_expert_intermediate_size = 16, 28
        else:
            config.intermediate_size = 16
    return type(model)(config).num_parameters()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uniform": False}, "`uniform` true"),
        ({"tokens_per_second": 1.0}, "no `tokens_per_second`"),
        ({"experts": [0]}, "numbers of at least 1 in `heads` and `experts`"),
        ({"experts": [3]}, "at least 2 experts to be left"),
    ],
)
def test_what_experts_do_not_go_with_is_refused(
    options: dict[str, Any], message: str, make_model: MakeModel
) -> None:
    with pytest.raises(InputError, match=message):
        Budget(**{"experts": [1], "heads": [], "neurons": [], "blocks": 1, **options}).check(
            make_model("mixtral")
        )


def test_no_method_follows_a_budget_with_experts() -> None:
    with pytest.raises(InputError, match="Expected Budget as the last"):
        Steps([Budget(experts=[1]), Magnitude(Unstructured(0.5))])
