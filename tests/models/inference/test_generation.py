import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from prunelit.errors import InputError
from prunelit.models.inference.generation import Sampling, rollout, stop_tokens

MakeModel = Callable[..., PreTrainedModel]
BUDGET = 12


def greedy(model: PreTrainedModel, ids: Tensor, stops: list[int]) -> tuple[list[int], bool]:
    """Decode one unpadded prompt without a cache; each token reads the whole sequence."""
    written: list[int] = []
    for _ in range(BUDGET):
        sequence = torch.cat([ids, torch.tensor(written, dtype=torch.int64)])[None]
        written.append(int(model(sequence, use_cache=False).logits[0, -1].argmax()))
        if written[-1] in stops:
            return written, True
    return written + [-1] * (BUDGET - len(written)), False


def assert_equal_to_single_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, padded: dict[str, Tensor]
) -> None:
    stops = stop_tokens(model, tokenizer)
    found = rollout(model, tokenizer, **padded, max_new_tokens=BUDGET)
    assert found.tokens.shape == (6, BUDGET)
    for row in range(6):
        real = padded["attention_mask"][row].bool()
        written, ended = greedy(model, padded["input_ids"][row, real], stops)
        assert found.tokens[row].tolist() == written + [-1] * (BUDGET - len(written))
        assert found.ended[row].item() == ended


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield


def test_padded_batches_with_a_cache_write_what_single_prompts_write(
    make_model: MakeModel,
    family: str,
    tokenizer: PreTrainedTokenizerFast,
    padded: dict[str, Tensor],
) -> None:
    assert_equal_to_single_prompts(make_model(family), tokenizer, padded)


def test_every_row_stops_at_its_own_end_of_text(
    make_model: MakeModel,
    family: str,
    tokenizer: PreTrainedTokenizerFast,
    padded: dict[str, Tensor],
) -> None:
    model = make_model(family)
    free = rollout(model, tokenizer, **padded, max_new_tokens=BUDGET).tokens
    # The fourth token of row 0 and the second of row 1 now end a text.
    model.generation_config.eos_token_id = [int(free[0, 3]), int(free[1, 1])]
    found = rollout(model, tokenizer, **padded, max_new_tokens=BUDGET)
    assert found.ended[:2].all()
    assert (found.tokens[0] >= 0).sum() <= 4
    assert (found.tokens[1] >= 0).sum() <= 2
    assert_equal_to_single_prompts(model, tokenizer, padded)


def test_end_of_text_is_kept_and_nothing_after_it(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, input_ids: Tensor
) -> None:
    mask = torch.ones_like(input_ids)
    free = rollout(model, tokenizer, input_ids, mask, max_new_tokens=BUDGET)
    assert not free.ended.any()
    assert (free.tokens >= 0).all()
    end = int(free.tokens[2, 0])
    model.generation_config.eos_token_id = end
    found = rollout(model, tokenizer, input_ids, mask, max_new_tokens=BUDGET)
    assert found.tokens[2].tolist() == [end] + [-1] * (BUDGET - 1)
    assert found.ended[2]


def test_all_rows_may_end_before_the_budget(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, input_ids: Tensor
) -> None:
    model.generation_config.eos_token_id = list(range(300))
    mask = torch.ones_like(input_ids)
    found = rollout(model, tokenizer, input_ids, mask, max_new_tokens=BUDGET)
    assert (found.tokens[:, 0] >= 0).all()
    assert (found.tokens[:, 1:] == -1).all()
    assert found.ended.all()


def test_settings_that_come_with_the_model_are_not_applied(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, padded: dict[str, Tensor]
) -> None:
    expected = rollout(model, tokenizer, **padded, max_new_tokens=BUDGET).tokens
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=5.0,
        top_k=50,
        repetition_penalty=3.0,
        no_repeat_ngram_size=1,
        min_new_tokens=5,
        num_beams=2,
        suppress_tokens=expected.unique().tolist(),
        forced_eos_token_id=7,
        max_length=21,
        eos_token_id=0,
        bos_token_id=0,
    )
    # Sampling at this temperature would not repeat these tokens by chance.
    found = rollout(model, tokenizer, **padded, max_new_tokens=BUDGET).tokens
    assert torch.equal(found, expected)


def test_generation_config_is_restored_also_after_an_error(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, input_ids: Tensor
) -> None:
    own = model.generation_config
    before = own.to_dict()
    mask = torch.ones_like(input_ids)
    rollout(model, tokenizer, input_ids, mask, max_new_tokens=2)
    assert model.generation_config is own
    model.model.norm.register_forward_hook(_fail)
    with pytest.raises(RuntimeError, match="out of order"):
        rollout(model, tokenizer, input_ids, mask, max_new_tokens=2)
    assert model.generation_config is own
    assert own.to_dict() == before


def _fail(*_: object) -> None:
    raise RuntimeError("out of order")


@pytest.mark.parametrize(
    ("own", "expected"), [(None, [0]), (5, [0, 5]), ([9, 5], [0, 5, 9]), ([0], [0])]
)
def test_stop_tokens_are_the_models_and_the_tokenizers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    own: int | list[int] | None,
    expected: list[int],
) -> None:
    model.generation_config.eos_token_id = own
    assert stop_tokens(model, tokenizer) == expected


def test_model_without_a_generation_config_and_any_end(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, input_ids: Tensor
) -> None:
    model.generation_config = None
    assert stop_tokens(model, tokenizer) == [0]
    tokenizer.eos_token = None
    assert stop_tokens(model, tokenizer) == []
    mask = torch.ones_like(input_ids)
    found = rollout(model, tokenizer, input_ids, mask, max_new_tokens=3)
    assert (found.tokens >= 0).all()
    assert not found.ended.any()


def sampled(
    model: PreTrainedModel, ids: Tensor, seed: int, prompt: int, temperature: float
) -> list[int]:
    """Sample for one unpadded prompt without a cache, with noise drawn here, up to token 0."""
    state = np.random.SeedSequence((seed, prompt)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0]))
    written: list[int] = []
    while len(written) < BUDGET and 0 not in written:
        sequence = torch.cat([ids, torch.tensor(written, dtype=torch.int64)])[None]
        logits = model(sequence, use_cache=False).logits[0, -1].double()
        uniform = torch.rand(len(logits), generator=generator, dtype=torch.float64)
        written.append(int((logits / temperature - (-uniform.log()).log()).argmax()))
    return written + [-1] * (BUDGET - len(written))


def test_sampled_batches_write_what_single_prompts_with_the_same_noise_write(
    make_model: MakeModel,
    family: str,
    tokenizer: PreTrainedTokenizerFast,
    padded: dict[str, Tensor],
) -> None:
    model = make_model(family)
    prompts = [4, 0, 9, 1, 2, 3]
    found = rollout(
        model,
        tokenizer,
        **padded,
        max_new_tokens=BUDGET,
        sampling=Sampling(7, prompts, temperature=0.8),
    ).tokens
    for row, prompt in enumerate(prompts):
        ids = padded["input_ids"][row, padded["attention_mask"][row].bool()]
        assert found[row].tolist() == sampled(model, ids, 7, prompt, 0.8)
    greedy = rollout(model, tokenizer, **padded, max_new_tokens=BUDGET).tokens
    assert not torch.equal(found, greedy)


def test_noise_depends_on_seed_and_prompt_and_not_on_the_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, padded: dict[str, Tensor]
) -> None:
    def tokens(rows: list[int], seed: int, prompts: list[int]) -> Tensor:
        part = {name: value[rows] for name, value in padded.items()}
        sampling = Sampling(seed, prompts)
        return rollout(model, tokenizer, **part, max_new_tokens=6, sampling=sampling).tokens

    whole = tokens([0, 1, 2, 3, 4, 5], 5, [0, 1, 2, 3, 4, 5])
    assert torch.equal(whole, tokens([0, 1, 2, 3, 4, 5], 5, [0, 1, 2, 3, 4, 5]))
    for row in range(6):
        assert torch.equal(tokens([row], 5, [row])[0], whole[row])
    assert torch.equal(tokens([3, 1], 5, [3, 1]), whole[[3, 1]])
    assert not torch.equal(tokens([0], 6, [0])[0], whole[0])
    assert not torch.equal(tokens([0], 5, [1])[0], whole[0])


def test_two_models_share_the_noise(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, padded: dict[str, Tensor]
) -> None:
    sampling = Sampling(0, range(6), temperature=1.3)
    options = {"max_new_tokens": BUDGET, "sampling": sampling}
    own = rollout(model, tokenizer, **padded, **options).tokens
    copied = rollout(copy.deepcopy(model), tokenizer, **padded, **options).tokens
    assert torch.equal(own, copied)


def test_sampling_is_from_the_softmax(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, input_ids: Tensor
) -> None:
    n, temperature = 3000, 0.3
    ids = input_ids[:1].expand(n, -1)
    options = {"max_new_tokens": 1, "sampling": Sampling(1, range(n), temperature)}
    found = rollout(model, tokenizer, ids, torch.ones_like(ids), **options).tokens[:, 0]
    expected = (model(input_ids[:1]).logits[0, -1] / temperature).softmax(-1)
    share = torch.bincount(found, minlength=len(expected)) / n
    error = (expected * (1 - expected) / n).sqrt()
    assert expected.max() > 0.1
    assert ((share - expected).abs() < 4.5 * error + 1 / n).all()


def test_low_temperatures_are_greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, padded: dict[str, Tensor]
) -> None:
    greedy = rollout(model, tokenizer, **padded, max_new_tokens=BUDGET).tokens
    cold = Sampling(0, range(6), temperature=1e-4)
    found = rollout(model, tokenizer, **padded, max_new_tokens=BUDGET, sampling=cold).tokens
    assert torch.equal(found, greedy)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_temperatures_that_are_not_positive_are_refused(temperature: float) -> None:
    with pytest.raises(InputError, match=f"Expected `temperature` above 0 but got {temperature}"):
        Sampling(0, [0], temperature)


def test_negative_seeds_are_refused() -> None:
    with pytest.raises(InputError, match="Expected `seed` of at least 0 but got -1"):
        Sampling(-1, [0])


def test_given_stops_replace_those_of_the_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, input_ids: Tensor
) -> None:
    mask = torch.ones_like(input_ids)
    free = rollout(model, tokenizer, input_ids, mask, max_new_tokens=4).tokens
    stops = [int(free[2, 1])]
    found = rollout(model, tokenizer, input_ids, mask, max_new_tokens=4, stops=stops)
    assert found.ended[2]
    assert (found.tokens[2, 2:] == -1).all()
    model.generation_config.eos_token_id = stops
    none = rollout(model, tokenizer, input_ids, mask, max_new_tokens=4, stops=[])
    assert torch.equal(none.tokens, free)
    assert not none.ended.any()
