"""A block stops as soon as everything that is observed has run."""

import pytest
import torch
from torch import Tensor, nn

from prunelit.activations import Gram, Probe, SquaredNorm
from prunelit.errors import InputError
from prunelit.models.replay import Stream
from prunelit.pruning.hooks import Feed, Trial

HIDDEN = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
REAL = torch.tensor([[True, True, True], [False, True, True]])


class Block(nn.Module):
    """`twin` reads what `first` reads, `last` runs twice, and `end` comes after both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twin, self.last, self.end = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, hidden: Tensor) -> Tensor:
        found = self.first(hidden) + self.twin(hidden)
        return self.end(self.last(self.last(found)))


@pytest.fixture
def block() -> Block:
    return Block().requires_grad_(False)


def read(block: Block, probes: dict[str, Probe], *, trial: bool) -> tuple[Tensor | None, int]:
    """Return the output of a feed, and how often `end` ran."""
    inputs = None
    if trial:
        inputs = Trial(block, probes)
        block(HIDDEN)
        block(HIDDEN[:1])  # the last run counts
        inputs.remove()
    ran: list[int] = []
    handle = block.end.register_forward_hook(lambda *_: ran.append(1))
    output = Feed(block, 0, probes, inputs).observe(Stream(HIDDEN, [((), {})], REAL))
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in block.modules())
    return output, len(ran)


def probes_of(*names: str, at: str = "input") -> dict[str, Probe]:
    return {name: Probe(SquaredNorm(4), at) for name in names}  # type: ignore[arg-type]


@torch.no_grad()
def test_the_block_stops_at_the_last_input_of_its_trial_run(block: Block) -> None:
    probes = probes_of("first", "twin", "last")
    assert read(block, probes, trial=True) == (None, 0)
    assert probes["twin"].statistic is probes["first"].statistic
    found = block.first(HIDDEN) + block.twin(HIDDEN)
    both = torch.stack([found[REAL], block.last(found)[REAL]])  # `last` was read both times
    torch.testing.assert_close(probes["last"].statistic.value, both.square().mean((0, 1)))
    torch.testing.assert_close(probes["first"].statistic.value, HIDDEN[REAL].square().mean(0))


@torch.no_grad()
@pytest.mark.parametrize(
    ("probes", "trial"),
    [
        (probes_of("first"), False),
        (probes_of("last", at="output"), True),
        (probes_of("end"), False),
        ({}, True),
    ],
)
def test_otherwise_it_runs_to_its_end(block: Block, probes: dict[str, Probe], trial: bool) -> None:
    output, ran = read(block, probes, trial=trial)
    assert output is not None
    assert torch.equal(output, block(HIDDEN))
    assert ran == 1


def test_statistics_of_two_kinds_are_not_shared(block: Block) -> None:
    probes = {"first": Probe(SquaredNorm(4)), "twin": Probe(Gram(4))}
    read(block, probes, trial=True)
    assert probes["twin"].statistic.value.shape == (4, 4)
    assert probes["first"].statistic.value.shape == (4,)


def test_input_by_keyword_is_refused_by_name(block: Block) -> None:
    trial = Trial(block, probes_of("first"))
    with pytest.raises(InputError, match=r"'first' gets its input by keyword"):
        block.first(input=HIDDEN)
    trial.remove()
    assert not block.first._forward_pre_hooks
