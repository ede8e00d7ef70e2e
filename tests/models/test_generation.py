from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from prunelit.models.generation import rollout, stop_tokens

MakeModel = Callable[..., PreTrainedModel]
BUDGET = 12


def greedy(model: PreTrainedModel, ids: Tensor, stops: list[int]) -> tuple[list[int], bool]:
    """One unpadded prompt, no cache: the whole sequence is read again for every token."""
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
    # What rows 0 and 1 write as their fourth and second token ends a text from now on.
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
