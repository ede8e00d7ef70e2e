"""The recovery loss against plain formulas, the parameters that it trains, and its recipe."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.pruning import recovery
from prunelit.pruning.lora import LoRA
from prunelit.pruning.recovery import Recovery, adamw

MakeModel = Callable[..., PreTrainedModel]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks so small that the 114 tokens of a test need several, the last one partial."""
    monkeypatch.setattr(recovery, "CHUNK", 50)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_losses_are_their_formulas(
    family: str, make_model: MakeModel, input_ids: Tensor, temperature: float
) -> None:
    pruned, dense = make_model(family, seed=1), make_model(family, seed=0)
    losses = Recovery(lm=0.5, kl=2.0, hidden=3.0, temperature=temperature).losses(
        pruned, dense, input_ids
    )
    mine = pruned(input_ids=input_ids, output_hidden_states=True)
    theirs = dense(input_ids=input_ids, output_hidden_states=True)
    lm = F.cross_entropy(mine.logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
    p = (theirs.logits[:, :-1] / temperature).softmax(-1)
    p_pruned = (mine.logits[:, :-1] / temperature).softmax(-1)
    kl = temperature**2 * (p * (p / p_pruned).log()).sum(-1).mean()
    assert losses["lm"].item() == pytest.approx(lm.item(), rel=1e-4)
    assert losses["kl_dense_pruned"].item() == pytest.approx(kl.item(), rel=1e-3)
    parts = [
        ((h - g) ** 2).mean() / (g**2).mean()
        for h, g in zip(mine.hidden_states[1:-1], theirs.hidden_states[1:-1], strict=True)
    ]
    final = pruned.base_model(input_ids).last_hidden_state, dense.base_model(input_ids)[0]
    parts.append(((final[0] - final[1]) ** 2).mean() / (final[1] ** 2).mean())
    assert len(parts) == len(decoder_blocks(pruned)[1])
    hidden = torch.stack(parts).mean()
    assert losses["hidden"].item() == pytest.approx(hidden.item(), rel=1e-4)
    expected = 0.5 * lm + 2 * kl + 3 * hidden
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-3)


def test_gradients_are_those_of_the_formula(model: PreTrainedModel, input_ids: Tensor) -> None:
    Recovery(lm=1.0).losses(model, None, input_ids)["loss"].backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(input_ids=input_ids, labels=input_ids).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_a_copy_has_nothing_to_learn_from_the_dense_model(
    model: PreTrainedModel, make_model: MakeModel, input_ids: Tensor
) -> None:
    losses = Recovery(lm=0.0, kl=1.0, hidden=1.0).losses(model, make_model(), input_ids)
    assert set(losses) == {"loss", "kl_dense_pruned", "hidden"}
    assert losses["loss"].item() == pytest.approx(0, abs=1e-6)


def test_only_what_the_patterns_match_is_trained(model: PreTrainedModel) -> None:
    Recovery(train=["*.mlp.*", "*norm*"]).choose(model)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".mlp." in name or "norm" in name), name
    with pytest.raises(InputError, match=r"'\*\.mpl\.up' .* matches no parameter; near names"):
        Recovery(train=["*.mpl.up"]).check(model)
    with pytest.raises(InputError, match="matches no parameter"):
        Recovery(train=["*.mpl.up"]).choose(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lm": -1.0}, "loss weights >= 0"),
        ({"lm": 0.0}, "one of them > 0"),
        ({"temperature": 0.0}, "`temperature` above 0 but got 0.0"),
        ({"lora": LoRA(), "train": ["*.mlp.*"]}, "`train` or `lora` but got both"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recovery(**arguments)


def test_the_recipe_names_classes_by_the_path_that_users_import() -> None:
    def halve(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)

    recipe = Recovery(kl=2.0).recipe(adamw, halve)
    assert recipe["recovery"]["init_args"]["kl"] == 2.0
    assert recipe["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert recipe["optimizer"]["lr"] == 1e-4
    assert recipe["lr_scheduler"]["class_path"] == "torch.optim.lr_scheduler.ExponentialLR"
    assert recipe["lr_scheduler"]["gamma"] == 0.5


def test_a_scheduler_that_needs_a_metric_is_refused() -> None:
    with pytest.raises(InputError, match="got ReduceLROnPlateau, which needs a metric"):
        Recovery().recipe(adamw, torch.optim.lr_scheduler.ReduceLROnPlateau)
