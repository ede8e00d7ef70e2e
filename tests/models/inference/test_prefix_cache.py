"""Shared prefixes: their length, how often they are read, and left-padded rows with them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from prunelit.data.tokens import pad
from prunelit.models.architecture import decoder_blocks
from prunelit.models.inference.generation import rollout
from prunelit.models.inference.prefix_cache import (
    MIN_PREFIX,
    SharedPrefix,
    common_prefix_length,
    find_padding_problem,
    plain_tokens,
    shared_prefix_length,
)
from prunelit.models.parts import drop_
from prunelit.models.surgery import shrink_

MakeModel = Callable[..., PreTrainedModel]


@pytest.fixture
def prompts() -> list[list[int]]:
    """Prompts of unequal lengths, with rests of 1 to 45 tokens after the prefix."""
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
    assert shared_prefix_length(prompts) == 20
    options = {"prefix": prompts[0][:20], "shared_prefix": SharedPrefix()}
    assert find_padding_problem(model) is None  # so the cache is tested
    batch = pad(prompts, 0, left=True)
    whole = rollout(model, tokenizer, **batch, max_new_tokens=10)
    # The rest of the third prompt has 45 tokens, so that in other rows padding fills the cache.
    for rows in ([0, 1, 2, 3], [1, 3], [2]):
        part = pad([prompts[row] for row in rows], 0, left=True)
        found = rollout(model, tokenizer, **part, max_new_tokens=10, **options)
        assert torch.equal(found.tokens, whole.tokens[rows])


@torch.no_grad()
def test_the_prefix_is_read_once(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    lengths: list[int] = []
    model.model.embed_tokens.register_forward_hook(
        lambda _, inputs, __: lengths.append(inputs[0].shape[1])
    )
    options = {"prefix": prompts[0][:20], "shared_prefix": SharedPrefix()}
    batch = pad([prompts[1], prompts[3]], 0, left=True)
    rollout(model, tokenizer, **batch, max_new_tokens=1, **options)
    assert lengths.count(20) == 1
    lengths.clear()
    rollout(model, tokenizer, **batch, max_new_tokens=1, **options)
    assert lengths == [9]


@torch.no_grad()
def test_rollouts_without_some_sublayers(
    make_model: MakeModel,
    family: str,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[list[int]],
) -> None:
    model = make_model(family)
    for block, kind in zip(decoder_blocks(model)[1], ("mixer", "mlp", "mixer"), strict=True):
        drop_(block, kind)
    shrink_(model)
    assert find_padding_problem(model) is None
    batch = pad(prompts, 0, left=True)
    whole = rollout(model, tokenizer, **batch, max_new_tokens=10)
    found = rollout(model, tokenizer, **batch, max_new_tokens=10, prefix=prompts[0][:20])
    assert torch.equal(found.tokens, whole.tokens)


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        ([[1, 2], [1, 3]], 1),
        ([[1, 2], [1, 2, 3]], 2),
        ([[], [1]], 0),
        ([[1, 2]], 2),
        ([[2], [1]], 0),
    ],
)
def test_common_prefix(sequences: list[list[int]], expected: int) -> None:
    assert common_prefix_length(sequences) == expected


def test_a_short_or_missing_prefix_is_not_shared() -> None:
    assert shared_prefix_length([[1, 2, 3], [1, 2, 4]]) == 0
    assert shared_prefix_length([[*range(30)], [*range(1, 30)]]) == 0
    assert shared_prefix_length([[*range(MIN_PREFIX), 98], [*range(MIN_PREFIX), 99]]) == MIN_PREFIX
    assert shared_prefix_length([[*range(MIN_PREFIX)], [*range(MIN_PREFIX)]]) == 0


def test_a_sequence_that_is_the_prefix_keeps_a_token_to_read() -> None:
    assert shared_prefix_length([[*range(20)], [*range(40)]]) == 19
    assert shared_prefix_length([[*range(20)]] * 3) == 19


@pytest.mark.parametrize("vocabulary", [16, 257, 49152])
def test_checks_use_plain_tokens(model: PreTrainedModel, vocabulary: int) -> None:
    model.config.vocab_size = vocabulary
    ids = plain_tokens(model)
    assert len(set(ids)) == 13
    # Beyond the special tokens of SmolLM2 and similar models.
    assert vocabulary // 6 <= min(ids) < max(ids) < vocabulary


class Shifted(nn.Module):
    """A wrong embedding that depends on the number of tokens read at once."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids) + 0.1 * ids.shape[1]


def test_a_model_that_cannot_share_its_cache_reads_prompts_whole_with_a_warning(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    assert find_padding_problem(model) is None
    model.model.embed_tokens = Shifted(model.model.embed_tokens)
    assert "with a shared cache its results differ by" in str(find_padding_problem(model))
    shared_prefix, begin = SharedPrefix(), prompts[0][:20]
    mask = pad(prompts, 0, left=True)["attention_mask"]
    with pytest.warns(UserWarning, match="LlamaForCausalLM reads every sequence whole, which"):
        assert shared_prefix.make_cache(model, begin, mask) is None
    assert shared_prefix.make_cache(model, begin, mask) is None  # warned once


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("this cache is of another kind"), "this cache is of another kind"),
        (
            IndexError("list index out of range"),
            "a block reads a place that the cache does not have",
        ),
    ],
)
def test_a_model_with_another_cache_is_found(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(DynamicCache, "update", refuse)
    assert find_padding_problem(model) == f"its cache cannot be shared ({reason})"


def test_a_family_without_keys_and_values_is_found() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=2, pad_token_id=0)
    config.bos_token_id = config.eos_token_id = 0
    problem = find_padding_problem(MambaForCausalLM(config).eval())
    assert (problem or "").startswith("its cache cannot be shared (")
