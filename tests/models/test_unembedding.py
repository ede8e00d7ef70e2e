"""The Gram matrix of a shared unembedding, on every family and where it must not be used."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CohereConfig, PreTrainedModel

from prunelit import prune
from prunelit.metrics.spaces.deviation import logit_space_deviations
from prunelit.metrics.spaces.logit_pair import LogitPair
from prunelit.models import unembedding
from prunelit.models.architecture import final_hidden, unembed
from prunelit.models.unembedding import shared_gram
from prunelit.models.views import view
from prunelit.pruners import Wanda
from prunelit.sparsity import Unstructured

MakeModel = Callable[..., PreTrainedModel]


@pytest.fixture
def pair(
    make_model: MakeModel, input_ids: Tensor
) -> Callable[[str], tuple[PreTrainedModel, PreTrainedModel]]:
    """`pair(family)`: a dense and a pruned model."""

    def make(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
        dense, pruned = make_model(family), make_model(family)
        prune(pruned, Wanda(Unstructured(0.3)), input_ids)
        return dense, pruned

    return make


@torch.no_grad()
def test_it_gives_the_logit_space_of_every_family_without_a_cap(
    family: str, pair: Callable[..., Any], input_ids: Tensor
) -> None:
    dense, pruned = pair(family)
    gram = shared_gram(dense, pruned)
    if family == "gemma2":
        assert gram is None  # it caps its logits
        dense.config.final_logit_softcapping = pruned.config.final_logit_softcapping = None
        gram = shared_gram(dense, pruned)
    assert gram is not None
    mask = torch.ones_like(input_ids)
    h, other = (final_hidden(model, input_ids, mask).flatten(0, 1) for model in (dense, pruned))
    found = gram.compare(h, other)
    z, y = (
        unembed(model.double(), x.double()).double()  # which rounds to float32 at its end
        for model, x in ((dense, h), (pruned, other))
    )
    head: Any = dense.get_output_embeddings()
    difference = (other.double() - h.double()) @ head.weight.T
    exact = head(h.double())
    torch.testing.assert_close(exact, z, rtol=1e-6, atol=1e-6)
    norm = exact.square().sum(-1)
    share = (exact * difference).sum(-1) / norm
    rest = (difference - share[:, None] * exact).square().sum(-1) / norm
    assert rest.min() > 0
    for mine, theirs in (
        (found.vectors.cosine, (1 + share) / ((1 + share).square() + rest).sqrt()),
        (found.vectors.squared_distance / 300, difference.square().mean(-1)),
        (found.vectors.parallel, share.abs()),
        (found.vectors.orthogonal, rest.sqrt()),
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=0)
    # The plain way has the noise of logits in float32.
    plain = logit_space_deviations(LogitPair(z, y))
    torch.testing.assert_close(logit_space_deviations(found), plain, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_scale_of_the_family_is_a_part_of_it(input_ids: Tensor) -> None:
    models = []
    for seed in (0, 1):
        torch.manual_seed(0)
        config = CohereConfig(
            vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, logit_scale=0.25,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config).eval()
        model.model.layers[0].mlp.up_proj.weight.mul_(1 + seed)
        models.append(model)
    gram = shared_gram(*models)
    assert gram is not None
    mask = torch.ones_like(input_ids)
    h, other = (final_hidden(model, input_ids, mask).flatten(0, 1) for model in models)
    z, y = (unembed(model, x) for model, x in zip(models, (h, other), strict=True))
    plain = logit_space_deviations(LogitPair(z, y))
    found = logit_space_deviations(gram.compare(h, other))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)
    models[1].config.logit_scale = 0.5
    assert shared_gram(*models) is None


def _train(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight + 1e-3)


def _bias(model: Any) -> None:
    model.lm_head.bias = nn.Parameter(torch.zeros(300))


def _adapt(model: Any) -> None:
    class Adapter(nn.Linear):
        pass

    model.lm_head.__class__ = Adapter


def _replace_forward(model: Any) -> None:
    vars(model.lm_head)["forward"] = lambda hidden: hidden @ model.lm_head.weight.T


def _shrink(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight[:, :16].clone())


CHANGES = [_train, _bias, _adapt, _replace_forward, _shrink, lambda model: model.bfloat16()]


@pytest.mark.parametrize("change", CHANGES)
def test_other_heads_take_the_direct_way(change: Callable[..., Any], make_model: MakeModel) -> None:
    dense, pruned = make_model("qwen2"), make_model("qwen2")
    assert shared_gram(dense, pruned) is not None
    with torch.no_grad():
        change(pruned)
    assert shared_gram(dense, pruned) is None
    assert shared_gram(pruned, dense) is None


def test_half_precision_and_weights_that_are_not_finite(make_model: MakeModel) -> None:
    dense, pruned = (make_model("qwen2").bfloat16() for _ in range(2))
    assert shared_gram(dense, pruned) is None
    dense, pruned = (make_model("qwen2") for _ in range(2))
    with torch.no_grad():
        for model in (dense, pruned):
            model.get_output_embeddings().weight[3, 4] = torch.inf
    assert shared_gram(dense, pruned) is None


def test_it_is_built_once_for_a_dense_model(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    class Counted(unembedding.LogitGram):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            built.append(1)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(unembedding, "LogitGram", Counted)
    dense, first, second = make_model("llama"), make_model("llama"), make_model("llama")
    gram = shared_gram(dense, first)
    assert shared_gram(dense, second) is gram
    assert shared_gram(view(dense), view(first)) is gram
    assert len(built) == 1
    with torch.no_grad():
        for model in (dense, first):
            model.get_output_embeddings().weight.mul_(2)
    assert shared_gram(dense, first) is not gram
    assert len(built) == 2
