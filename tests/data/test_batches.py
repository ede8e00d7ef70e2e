import pytest
import torch
from transformers import PreTrainedTokenizerFast

from prunelit.data.batches import (
    as_batches,
    check_ids,
    choose_tokens,
    hold_out,
    longest,
    one_by_one,
)
from prunelit.errors import InputError

IDS = torch.arange(1, 15).view(7, 2)


def test_tensor_is_cut_into_batches_that_hold_everything_in_order() -> None:
    batches = as_batches(IDS, 3)
    assert [len(batch["input_ids"]) for batch in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([batch["input_ids"] for batch in batches]), IDS)
    assert all(batch["attention_mask"].all() for batch in batches)
    assert all(batch["attention_mask"].shape == batch["input_ids"].shape for batch in batches)


def test_batches_of_every_form_stay_as_they_are() -> None:
    mask = torch.tensor([[0, 1]])
    given = [IDS, {"input_ids": IDS[:1]}, {"input_ids": IDS[:1], "attention_mask": mask}]
    batches = as_batches(iter(given), 1)
    assert [len(batch["input_ids"]) for batch in batches] == [7, 1, 1]
    assert batches[1]["attention_mask"].tolist() == [[1, 1]]
    assert torch.equal(batches[2]["attention_mask"], mask)


def test_sequences_one_by_one_are_those_with_a_token() -> None:
    mask = torch.ones_like(IDS)
    mask[3] = 0
    mask[4, 0] = 0
    found = one_by_one(as_batches([{"input_ids": IDS, "attention_mask": mask}, IDS[:2]], 8))
    assert torch.equal(
        torch.cat([one["input_ids"] for one in found]), IDS[[0, 1, 2, 4, 5, 6, 0, 1]]
    )
    assert [one["attention_mask"].tolist() for one in found[3:5]] == [[[0, 1]], [[1, 1]]]


def test_what_a_tokenizer_returns_is_a_batch(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = tokenizer(["ab", "cdef"], return_tensors="pt", padding=True)
    (batch,) = as_batches([encoded], 8)
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]


def test_longest_is_the_width_of_the_widest_batch() -> None:
    assert longest(as_batches([IDS[:, :1], IDS, IDS[:, :1]], 1)) == 2


@pytest.mark.parametrize("size", [0, -1])
def test_batch_size_below_one(size: int) -> None:
    with pytest.raises(InputError, match=f"`batch_size` of at least 1 but got {size}"):
        as_batches(IDS, size)


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        IDS[:0],
        IDS[:, :0],
        [{"input_ids": IDS, "attention_mask": torch.zeros_like(IDS)}],
    ],
)
def test_nothing_to_read(inputs: object) -> None:
    with pytest.raises(InputError, match=r"at least one token|shape"):
        as_batches(inputs, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "inputs",
    [
        IDS[0],
        IDS[None],
        IDS.float(),
        [{"input_ids": IDS, "attention_mask": torch.ones(7, 3)}],
        [IDS.float()],
        IDS.bool(),
        IDS.to(torch.complex64),
    ],
)
def test_other_shapes_and_types_are_refused(inputs: object) -> None:
    with pytest.raises(InputError, match=r"integer `input_ids` of shape \(B, T\)"):
        as_batches(inputs, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_ids_of_every_whole_type_are_right(dtype: torch.dtype) -> None:
    (batch,) = as_batches([{"input_ids": IDS.to(dtype), "attention_mask": torch.ones(7, 2)}], 1)
    assert torch.equal(batch["input_ids"], IDS)
    assert {value.dtype for value in batch.values()} == {torch.int64}
    check_ids([batch], 300)


@pytest.mark.parametrize(
    "ids", [IDS.to_sparse(), IDS.to("meta"), [IDS.to_sparse()], [{"input_ids": IDS.to("meta")}]]
)
def test_ids_that_are_not_stored_one_by_one_are_refused(ids: object) -> None:
    with pytest.raises(InputError, match="a dense tensor of token ids but got one o"):
        as_batches(ids, 2)  # type: ignore[arg-type]


def test_keys_that_nothing_would_read_are_refused() -> None:
    with pytest.raises(InputError, match=r"but got \['input_ids', 'labels'\]"):
        as_batches([{"input_ids": IDS, "labels": IDS}], 2)
    with pytest.raises(InputError, match=r"but got \['attention_mask'\]"):
        as_batches([{"attention_mask": IDS}], 2)


@pytest.mark.parametrize("inputs", [{"input_ids": IDS}, ["text"], [[1, 2, 3]]])
def test_one_batch_or_text_or_lists_in_place_of_batches(inputs: object) -> None:
    with pytest.raises(InputError, match="Expected batches"):
        as_batches(inputs, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [[[0.0, -1e9]], [[1, -1]], [[0.5, 1.0]], [[float("nan"), 1.0]]])
def test_a_mask_has_ones_and_zeros(values: list[list[float]]) -> None:
    with pytest.raises(InputError, match="1 for tokens and 0 for padding"):
        as_batches([{"input_ids": IDS[:1], "attention_mask": torch.tensor(values)}], 1)


@pytest.mark.parametrize("followed", [False, True])
@pytest.mark.parametrize("count", [1, 3, 5, 9, None])
def test_tokens_are_chosen_evenly_and_never_padding(count: int | None, followed: bool) -> None:
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]])
    ids = torch.arange(16).view(4, 4)
    batches = as_batches([{"input_ids": ids[:1], "attention_mask": mask[:1]}], 1)
    batches += as_batches([{"input_ids": ids[1:], "attention_mask": mask[1:]}], 1)
    able = mask.bool()
    if followed:
        able[:, :-1] &= able[:, 1:].clone()
        able[:, -1] = False
    chosen = torch.cat(choose_tokens(batches, count, followed=followed))
    assert not (chosen & ~able).any()
    places = chosen[able].nonzero().flatten()
    if count is None or count >= able.sum():
        assert len(places) == able.sum()
        return
    assert len(places) == count
    gaps = places.diff(prepend=torch.tensor([-1]))
    assert gaps.max() - gaps.min() <= 1 or count == 1


@pytest.mark.parametrize(("share", "held"), [(0.01, 1), (0.25, 2), (0.5, 3)])
def test_the_last_sequences_with_a_token_are_held_out(share: float, held: int) -> None:
    batches = as_batches(IDS, 3)
    batches[1]["attention_mask"][1] = 0
    fitted, others = hold_out(batches, share)
    real = torch.cat([IDS[:4], IDS[5:]])
    for part, expected in ((fitted, real[: 6 - held]), (others, real[6 - held :])):
        assert torch.equal(torch.cat([batch["input_ids"] for batch in part]), expected)
        assert all(batch["attention_mask"].all() for batch in part)


def test_nothing_is_held_out_by_a_share_of_0() -> None:
    batches = as_batches(IDS, 3)
    assert hold_out(batches, 0.0) == (batches, batches)


def test_a_single_sequence_cannot_be_held_out() -> None:
    with pytest.raises(InputError, match=r"that `held_out: 0\.25` takes of 1 but there is none"):
        hold_out(as_batches(IDS[:1], 1), 0.25)
