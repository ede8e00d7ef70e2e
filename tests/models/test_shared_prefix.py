from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from prunelit.models.generation import rollout
from prunelit.models.shared_prefix import SharedPrefix, lending_problem
from prunelit.tokens import pad

MakeModel = Callable[..., PreTrainedModel]


@pytest.fixture
def prompts() -> list[list[int]]:
    """Of unequal length; two with a rest longer than the other's whole prompt lacks of it."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(1, 257, (90,), generator=generator).tolist()
    begin = ids[:20]
    return [begin + ids[20:21], begin + ids[21:30], begin + ids[30:75], begin + ids[75:78]]


@torch.no_grad()
def test_rollouts_are_those_of_prompts_that_are_read_whole(
    make_model: MakeModel,
    family: str,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[list[int]],
) -> None:
    model = make_model(family)
    prefix = SharedPrefix(prompts)
    assert prefix.tokens == prompts[0][:20]
    batch = pad(prompts, 0, left=True)
    whole = rollout(model, tokenizer, **batch, max_new_tokens=10)
    # The third prompt's rest of 45 tokens leaves rows whose prefix lies beyond the cached places.
    for rows in ([0, 1, 2, 3], [1, 3], [2]):
        part = pad([prompts[row] for row in rows], 0, left=True)
        found = rollout(model, tokenizer, **part, max_new_tokens=10, prefix=prefix)
        assert torch.equal(found.tokens, whole.tokens[rows])


@torch.no_grad()
def test_the_prefix_is_read_once(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    lengths: list[int] = []
    model.model.embed_tokens.register_forward_hook(
        lambda _, inputs, __: lengths.append(inputs[0].shape[1])
    )
    prefix = SharedPrefix(prompts)
    batch = pad([prompts[1], prompts[3]], 0, left=True)
    rollout(model, tokenizer, **batch, max_new_tokens=1, prefix=prefix)
    assert lengths.count(20) == 1
    lengths.clear()
    rollout(model, tokenizer, **batch, max_new_tokens=1, prefix=prefix)
    assert lengths == [9]


def test_short_and_missing_prefixes_are_not_shared(model: PreTrainedModel) -> None:
    mask = torch.ones(2, 20, dtype=torch.int64)
    for prompts in ([[1, 2, 3], [1, 2, 4]], [[*range(30)], [*range(1, 30)]]):
        prefix = SharedPrefix(prompts)
        assert prefix.tokens == []
        assert prefix.cache(model, mask) is None


def test_a_prompt_that_is_a_prefix_itself_keeps_a_token_to_read() -> None:
    assert SharedPrefix([[*range(20)], [*range(40)]]).tokens == [*range(19)]
    assert SharedPrefix([[*range(20)]] * 3).tokens == [*range(19)]


class Shifted(nn.Module):
    """An embedding that depends on how many tokens are read at once, as no model's should."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids) + 0.1 * ids.shape[1]


def test_a_model_that_cannot_lend_reads_prompts_whole_and_says_so(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    assert lending_problem(model) is None
    model.model.embed_tokens = Shifted(model.model.embed_tokens)
    assert "its logits differ by" in str(lending_problem(model))
    prefix = SharedPrefix(prompts)
    batch = pad(prompts, 0, left=True)
    with pytest.warns(UserWarning, match="LlamaForCausalLM reads every prompt whole: with a lent"):
        assert prefix.cache(model, batch["attention_mask"]) is None
    assert prefix.cache(model, batch["attention_mask"]) is None  # said once


def test_a_model_without_a_usual_cache_is_told_apart(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("this cache is of another kind")

    monkeypatch.setattr(DynamicCache, "update", refuse)
    assert lending_problem(model) == "its cache cannot be lent (this cache is of another kind)"
