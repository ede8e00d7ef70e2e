import copy
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunelit.errors import InputError
from prunelit.metrics import LogitMSE, ProbabilityKL, Top1Agreement
from prunelit.metrics.spaces import buffers
from prunelit.metrics.spaces.token_mean import TokenMean


class MeanDifference(TokenMean):
    """A metric that is easy to compute by hand."""

    def token_values(self, dense: Tensor, pruned: Tensor) -> Tensor:
        return (pruned - dense).mean(-1)


# Every rank runs this with its own number of tokens.
RANK = """
import json
import torch, torch.distributed as dist
from prunelit.metrics import LogitMSE, ProbabilityKL, Top1Agreement

torch.set_num_threads(1)
store = f"file://{FOLDER}/store"
dist.init_process_group("gloo", init_method=store, rank=RANK, world_size=WORLD)
data = torch.load(f"{FOLDER}/data.pt")
mine = slice(0, 5) if RANK == 0 else slice(5, None)
values = {}
for metric in (LogitMSE(), ProbabilityKL("pruned_dense"), Top1Agreement()):
    name = type(metric).__name__
    metric.update(data["dense"][mine], data["pruned"][mine], data["mask"][mine])
    values[name] = [metric.compute().item(), metric.total.item()]
    # Afterwards each rank continues with its own tokens.
    metric.update(data["dense"][:0], data["pruned"][:0])
    values[name].append(metric.compute().item())
json.dump(values, open(f"{FOLDER}/{RANK}.json", "w"))
dist.destroy_process_group()
"""


@pytest.fixture
def tokens() -> tuple[Tensor, Tensor]:
    """Two (2, 3, 4) tensors that differ by 0 to 5 at the tokens."""
    dense = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    return dense, dense + torch.arange(6.0).reshape(2, 3, 1)


def value(dense: Tensor, pruned: Tensor, mask: Tensor | None = None) -> float:
    metric = MeanDifference()
    metric.update(dense, pruned, mask)
    return metric.compute().item()


def test_mean_over_tokens(tokens) -> None:
    assert value(*tokens) == pytest.approx(2.5)


def test_one_token(tokens) -> None:
    assert value(tokens[0][1, 2], tokens[1][1, 2]) == pytest.approx(5)


def test_padding_enters_nothing_even_as_nan(tokens) -> None:
    dense, pruned = tokens
    mask = torch.tensor([[False, True, True], [True, False, False]])
    dense[~mask] = math.nan
    pruned[~mask] = math.inf
    assert value(dense, pruned, mask) == pytest.approx(2)
    assert value(dense[1, 0], pruned[1, 0], torch.tensor(True)) == pytest.approx(3)


def test_two_updates_equal_one(tokens) -> None:
    metric = MeanDifference()
    for row in (slice(0, 1), slice(1, 2)):
        metric.update(tokens[0][row, : 1 + row.start], tokens[1][row, : 1 + row.start])
    assert metric.compute().item() == pytest.approx((0 + 3 + 4) / 3)


@pytest.mark.parametrize("entries", [1, 4, 8, 20])
def test_the_size_of_a_chunk_does_not_matter(tokens, monkeypatch, entries: int) -> None:
    mask = torch.tensor([[False, True, True], [True, True, False]])
    whole, masked = value(*tokens), value(*tokens, mask=mask)
    monkeypatch.setattr(buffers, "_CPU_ENTRIES", entries)
    assert value(*tokens) == pytest.approx(whole)
    assert value(*tokens, mask=mask) == pytest.approx(masked)


def test_states_of_two_instances_merge_by_addition(tokens) -> None:
    first, second = MeanDifference(), MeanDifference()
    first.update(tokens[0][:, :1], tokens[1][:, :1])
    second.update(tokens[0][:, 1:], tokens[1][:, 1:])
    first.total, first.count = first.total + second.total, first.count + second.count
    assert first.compute().item() == pytest.approx(value(*tokens))


def test_forward_gives_the_batch_and_keeps_the_rest(tokens) -> None:
    metric = MeanDifference()
    assert metric(tokens[0][0], tokens[1][0]).item() == pytest.approx(1)
    assert metric(tokens[0][1], tokens[1][1]).item() == pytest.approx(4)
    assert metric.compute().item() == pytest.approx(2.5)


def test_without_tokens_the_value_is_nan(tokens) -> None:
    metric = MeanDifference()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert metric.compute().isnan()
    dense, pruned = tokens
    assert math.isnan(value(dense[:0], pruned[:0]))
    assert math.isnan(value(dense, pruned, torch.zeros(2, 3, dtype=torch.bool)))


def test_reset_forgets(tokens) -> None:
    metric = MeanDifference()
    metric.update(*tokens)
    metric.reset()
    metric.update(tokens[0][0], tokens[1][0])
    assert metric.compute().item() == pytest.approx(1)


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.to(torch.bfloat16),
        lambda m: m.bfloat16(),
        lambda m: m.half(),
        lambda m: m.float(),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_states_stay_float64_and_exact(cast, inside: bool) -> None:
    metric = MeanDifference()
    one = torch.ones(300, 1)
    metric.update(0 * one, one)
    cast(torch.nn.ModuleList([metric]) if inside else metric)
    for _ in range(2):
        # bfloat16 counts to 256, float16 to 2048.
        metric.update(0 * one, one / 3)
        assert metric.total.dtype == metric.count.dtype == torch.float64
        assert metric.compute().dtype == torch.float64
    assert metric.count == 900
    assert metric.compute().item() == pytest.approx(5 / 9, abs=1e-7)
    metric.reset()
    assert metric.total.dtype == metric.count.dtype == torch.float64


def test_set_dtype_changes_nothing() -> None:
    metric = MeanDifference()
    metric.set_dtype(torch.float32)
    assert metric.total.dtype == metric.count.dtype == torch.float64


def test_a_token_after_many_still_counts() -> None:
    metric = MeanDifference()
    zero = torch.zeros(1, 1)
    metric.update(zero, zero + 2.0**30)
    for _ in range(64):
        metric.update(zero, zero + 1)
    # Float32 would drop each of them.
    assert metric.total == 2.0**30 + 64


def test_copies_and_pickles(tokens) -> None:
    metric = MeanDifference()
    metric.update(*tokens)
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone()):
        assert twin.compute() == metric.compute()


@pytest.mark.parametrize(
    ("shape", "mask", "message"),
    [
        ((2, 3, 5), None, r"one shape \(..., N\) but got \(2, 3, 4\) and \(2, 3, 5\)"),
        ((2, 3, 4), torch.ones(2, 3), r"bool mask of shape \(2, 3\) but got torch.float32"),
        ((2, 3, 4), torch.ones(2, 3, dtype=torch.int64), "bool mask .* but got torch.int64"),
        ((2, 3, 4), torch.ones(6, dtype=torch.bool), r"but got torch.bool of shape \(6,\)"),
    ],
)
def test_bad_input(shape: tuple[int, ...], mask: Tensor | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MeanDifference().update(torch.zeros(2, 3, 4), torch.zeros(shape), mask)


@pytest.mark.distributed
def test_two_ranks_with_different_numbers_of_tokens(
    make_logits, tmp_path: Path, run_ranks: Callable[..., None]
) -> None:
    dense, pruned = make_logits((9, 300))
    mask = torch.tensor([True] * 6 + [False, True, False])
    torch.save({"dense": dense, "pruned": pruned, "mask": mask}, tmp_path / "data.pt")
    (tmp_path / "rank.py").write_text(RANK)
    run_ranks(tmp_path / "rank.py", 2, FOLDER=str(tmp_path))
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for metric in (LogitMSE(), ProbabilityKL("pruned_dense"), Top1Agreement()):
        metric.update(dense, pruned, mask)
        expected = metric.compute().item()
        for rank in range(2):
            together, _, again = found[rank][type(metric).__name__]
            assert together == pytest.approx(expected, rel=1e-12)
            assert again == pytest.approx(expected, rel=1e-12)
        own = [values[type(metric).__name__][1] for values in found]
        assert sum(own) == pytest.approx(metric.total.item(), rel=1e-12)
