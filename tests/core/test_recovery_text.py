"""Batches of the text that a pruned model is trained on, in each epoch."""

import torch

from prunelit.core.recovery_text import EpochBatches


def sequences(batches: EpochBatches) -> list[int]:
    """The sequences of an epoch in their order; each holds its own number."""
    return [number for batch in batches for number in batch["input_ids"][:, 0].tolist()]


def epoch_batches(rank: int = 0, world: int = 1, epoch: int = 0, seed: int = 5) -> EpochBatches:
    """Batches of two from eleven sequences of three tokens."""
    tokens = torch.arange(11)[:, None].repeat(1, 3)
    return EpochBatches(tokens, 2, seed, rank, world, lambda: epoch)


def test_an_epoch_has_every_sequence_once_but_the_rest() -> None:
    batches = epoch_batches()
    assert len(batches) == 5
    assert [batch["input_ids"].shape for batch in batches] == [(2, 3)] * 5
    assert all(batch["attention_mask"].all() for batch in batches)
    assert len(set(sequences(batches))) == 10


def test_the_order_depends_on_the_seed_and_the_epoch() -> None:
    first = sequences(epoch_batches())
    assert sequences(epoch_batches()) == first
    assert sequences(epoch_batches(epoch=1)) != first
    assert sequences(epoch_batches(seed=6)) != first


def test_ranks_share_an_epoch() -> None:
    ranks = [epoch_batches(rank, 2) for rank in (0, 1)]
    assert [len(rank) for rank in ranks] == [2, 2]
    whole = [batch["input_ids"].tolist() for batch in epoch_batches()]
    shared = zip(*ranks, strict=True)
    assert [batch["input_ids"].tolist() for pair in shared for batch in pair] == whole[:4]


def test_a_resumed_epoch_continues_with_the_next_batch() -> None:
    interrupted, whole = epoch_batches(), [batch["input_ids"] for batch in epoch_batches()]
    given = iter(interrupted)
    for _ in range(2):
        next(given)
    resumed = epoch_batches()
    resumed.load_state_dict(interrupted.state_dict())
    rest = [batch["input_ids"] for batch in resumed]
    assert len(rest) == 3
    assert all(mine.equal(theirs) for mine, theirs in zip(rest, whole[2:], strict=True))


def test_an_epoch_that_ended_is_followed_by_a_whole_one() -> None:
    ended = epoch_batches()
    sequences(ended)
    following = epoch_batches(epoch=1)
    following.load_state_dict(ended.state_dict())
    assert sequences(following) == sequences(epoch_batches(epoch=1))
