import math

import numpy as np
import pytest
import scipy.spatial.distance
import torch
from torch import Tensor

from prunelit.errors import InputError
from prunelit.metrics.spaces.buffers import Buffers
from prunelit.metrics.spaces.vector_pair import VectorPair, dot, widen


def random_pair(*shape: int, step: float = 0.3, dtype: torch.dtype = torch.float64) -> VectorPair:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(shape, dtype=torch.float64, generator=generator)
    pruned = dense + step * torch.randn(shape, dtype=torch.float64, generator=generator)
    return VectorPair(dense.to(dtype), pruned.to(dtype))


@pytest.mark.parametrize("shape", [(40,), (6, 40), (2, 3, 40)])
@pytest.mark.parametrize("step", [1e-6, 0.3, 30])
def test_cosine_is_that_of_scipy(shape: tuple[int, ...], step: float) -> None:
    pair = random_pair(*shape, step=step)
    assert pair.cosine.shape == shape[:-1]
    rows = zip(pair.dense.reshape(-1, 40), pair.pruned.reshape(-1, 40), strict=True)
    expected = [1 - scipy.spatial.distance.cosine(x.numpy(), y.numpy()) for x, y in rows]
    np.testing.assert_allclose(pair.cosine.reshape(-1).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(40,), (6, 40), (2, 3, 40)])
def test_parts_are_those_of_a_projection(shape: tuple[int, ...]) -> None:
    pair = random_pair(*shape)
    x, d = pair.dense.numpy(), pair.pruned.numpy() - pair.dense.numpy()
    norm = np.linalg.norm(x, axis=-1)
    along = (x * d).sum(-1, keepdims=True) / norm[..., None] ** 2 * x
    np.testing.assert_allclose(pair.parallel.numpy(), np.linalg.norm(along, axis=-1) / norm)
    np.testing.assert_allclose(pair.orthogonal.numpy(), np.linalg.norm(d - along, axis=-1) / norm)


def test_parts_of_a_right_angle() -> None:
    pair = VectorPair(torch.tensor([3.0, 4.0]), torch.tensor([3.0 - 8.0, 4.0 + 6.0]))
    assert pair.parallel == 0
    assert pair.orthogonal == 2
    assert pair.cosine.item() == pytest.approx(1 / math.sqrt(5), abs=1e-12)


@pytest.mark.parametrize("scale", [-1.0, 0.5, 3.0])
def test_scaling_moves_along_the_vector_only(scale: float) -> None:
    dense = random_pair(5, 1000).dense
    pair = VectorPair(dense.float(), scale * dense.float())
    torch.testing.assert_close(pair.cosine, torch.full((5,), math.copysign(1, scale)).double())
    torch.testing.assert_close(pair.parallel, torch.full((5,), abs(scale - 1)).double())
    assert (pair.orthogonal < 1e-3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_vectors_are_exactly_equal(dtype: torch.dtype) -> None:
    pair = random_pair(4, 1000, step=0, dtype=dtype)
    assert (pair.cosine == 1).all()
    assert (pair.parallel == 0).all()
    assert (pair.orthogonal == 0).all()


def test_float32_keeps_the_digits_of_small_angles() -> None:
    pair = random_pair(4, 20_000, step=1e-4, dtype=torch.float32)
    exact = VectorPair(pair.dense.double(), pair.pruned.double())
    # 1 - cosine is about 5e-9; a quotient of float32 dot products has an error of 1e-7.
    torch.testing.assert_close(1 - pair.cosine, 1 - exact.cosine, rtol=1e-3, atol=0)


@pytest.mark.parametrize("length", [1e-6, 1e-2, 0.2])
def test_float32_keeps_the_angle_of_a_collapsed_vector(length: float) -> None:
    pair = random_pair(4, 20_000, step=1)
    short = VectorPair(pair.dense.float(), (length * pair.pruned).float())
    torch.testing.assert_close(short.cosine, pair.cosine, rtol=0, atol=1e-5)


ZERO, ONE = torch.zeros(3), torch.tensor([1.0, 2.0, 2.0])


@pytest.mark.parametrize(
    ("dense", "pruned", "cosine", "parallel", "orthogonal"),
    [
        (ZERO, ZERO, 1, 0, 0),
        (ONE, ZERO, 0, 1, 0),
        (ZERO, ONE, 0, 0, math.inf),
    ],
)
def test_zero_vectors(
    dense: Tensor, pruned: Tensor, cosine: float, parallel: float, orthogonal: float
) -> None:
    pair = VectorPair(dense, pruned)
    assert pair.cosine == cosine
    assert pair.parallel == parallel
    assert pair.orthogonal == orthogonal


def test_nan_stays_visible() -> None:
    pair = VectorPair(ONE, torch.tensor([1.0, math.nan, 2.0]))
    assert pair.cosine.isnan()
    assert pair.parallel.isnan()
    assert pair.orthogonal.isnan()


@pytest.mark.parametrize(
    "types",
    [
        (torch.bfloat16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float32),
    ],
)
def test_computes_in_float64(types: tuple[torch.dtype, torch.dtype]) -> None:
    pair = VectorPair(ONE.to(types[0]), ONE.to(types[1]))
    assert pair.dense.dtype == pair.pruned.dtype == torch.float64
    assert pair.cosine == 1


def test_a_device_without_float64_is_refused() -> None:
    class OnMPS:
        device = torch.device("mps")

    with pytest.raises(InputError, match="which MPS does not support: move the tensors to the CPU"):
        widen(OnMPS())  # type: ignore[arg-type]


def test_buffers_change_no_value() -> None:
    plain = random_pair(4, 50, dtype=torch.float32)
    buffered = VectorPair(plain.dense, plain.pruned, Buffers())
    assert torch.equal(buffered.cosine, plain.cosine)
    assert torch.equal(buffered.orthogonal, plain.orthogonal)
    assert torch.equal(buffered.total, plain.total)


@pytest.mark.parametrize("shapes", [((3, 4), (3, 5)), ((4,), (1, 4)), ((), ())])
def test_shapes_must_agree(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(InputError, match=r"Expected dense and pruned tensors of one shape"):
        VectorPair(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_dot_is_a_float64_sum_over_the_last_axis() -> None:
    pair = random_pair(2, 3, 50, dtype=torch.float32)
    found = dot(pair.dense, pair.pruned)
    assert found.dtype == torch.float64
    expected = (pair.dense.double().numpy() * pair.pruned.double().numpy()).sum(-1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
