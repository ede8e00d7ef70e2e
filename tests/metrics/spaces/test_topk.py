import pytest
import torch

from prunelit.metrics.spaces.topk import top_indices


# From 20480 on, k = 10 no longer sorts the whole row; 40000 leaves a rest, 40960 does not.
@pytest.mark.parametrize("shape", [(300,), (4, 20_479), (2, 3, 40_000), (4, 40_960)])
@pytest.mark.parametrize("k", [1, 10])
def test_finds_the_highest_in_order(shape: tuple[int, ...], k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    # Distinct values: a permutation in each row.
    scores = torch.rand(shape, generator=generator).argsort(-1).float()
    found = top_indices(scores, k)
    assert found.shape == (*shape[:-1], k)
    assert torch.equal(found, scores.argsort(-1, descending=True)[..., :k])


@pytest.mark.parametrize("place", [0, 511, 512, 39_935, 39_936, 39_999])
def test_every_position_is_found(place: int) -> None:
    scores = torch.zeros(2, 40_000)
    scores[1, place] = 1
    assert top_indices(scores, 10)[1, 0] == place


def test_neighbours_in_one_column_are_all_found() -> None:
    scores = torch.zeros(1, 40_000)
    scores[0, 7 : 7 + 512 * 10 : 512] = torch.arange(1.0, 11.0)
    assert top_indices(scores, 10)[0].tolist() == [7 + 512 * i for i in range(9, -1, -1)]


@pytest.mark.parametrize("size", [300, 40_000])
def test_equal_scores_are_ordered_by_index(size: int) -> None:
    scores = torch.zeros(1, size)
    scores[0, [200, 17, 256]] = 5
    scores[0, 90] = 9
    assert top_indices(scores, 4)[0].tolist() == [90, 17, 200, 256]


def test_k_is_cut_to_the_size() -> None:
    assert top_indices(torch.tensor([[1.0, 3.0, 2.0]]), 10).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("size", [300, 40_000])
def test_no_row(size: int) -> None:
    assert top_indices(torch.empty(0, size), 10).shape == (0, 10)
