from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit import prune
from prunelit.activations import Gram
from prunelit.models.architecture import block_weights, decoder_blocks
from prunelit.models.parts import find_zeros, sublayers
from prunelit.pruners import LinearPruner

# If a norm follows a sublayer, the norm's output is added to the stream.
POST_NORMS = {
    "gemma2": {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
}


@pytest.fixture
def read_stream() -> Callable[..., list[dict[str, np.ndarray]]]:
    """`read_stream(model, batch)`: of every block its `input`, `output`, `attention` and `mlp`.

    The last two are what the sublayer adds to the stream, read off the family's own modules. All
    are of real tokens only, (N, D).
    """

    def read(model: PreTrainedModel, batch: dict[str, Tensor]) -> list[dict[str, np.ndarray]]:
        real = batch["attention_mask"].bool()
        seen: list[dict[str, np.ndarray]] = []
        handles = []

        def keep(values: dict[str, np.ndarray], name: str, x: Any) -> None:
            x = x if isinstance(x, Tensor) else x[0]
            values[name] = x.view(*real.shape, -1)[real].double().numpy()

        for block in decoder_blocks(model)[1]:
            seen.append(values := {})
            handles.append(
                block.register_forward_pre_hook(lambda _m, args, v=values: keep(v, "input", args))
            )
            modules = {"output": block}
            for sublayer in sublayers(block).values():
                norms = POST_NORMS.get(model.config.model_type, {})
                name = norms.get(sublayer.name, sublayer.parts[-1])
                modules[sublayer.name] = block.get_submodule(name)
            handles += [
                module.register_forward_hook(lambda _m, _a, out, v=values, n=name: keep(v, n, out))
                for name, module in modules.items()
            ]
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            model(**batch, position_ids=positions, use_cache=False)
        for handle in handles:
            handle.remove()
        return seen

    return read


@pytest.fixture
def distance() -> Callable[..., float]:
    """`distance(a, b)`: mean over rows of 1 - cos, or, if `angular`, of arccos(cos) / pi."""

    def mean(a: np.ndarray, b: np.ndarray, angular: bool = False) -> float:
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        return float((np.arccos(cosine) / np.pi if angular else 1 - cosine).mean())

    return mean


@pytest.fixture
def dropped() -> Callable[[PreTrainedModel], set[tuple[int, str]]]:
    """`dropped(model)`: (index of the block, kind) of every sublayer that puts out nothing."""

    def find(model: PreTrainedModel) -> set[tuple[int, str]]:
        return {
            (index, sublayers(block)[kind].name)
            for index, block in enumerate(decoder_blocks(model)[1])
            for kind in find_zeros(block)
        }

    return find


@pytest.fixture
def gram_of() -> Callable[[np.ndarray], Gram]:
    """`gram_of(x)`: the statistic of the tokens `x`, (N, I)."""

    def collect(x: np.ndarray) -> Gram:
        gram = Gram(x.shape[1])
        gram.update(torch.from_numpy(x).float())
        return gram

    return collect


@pytest.fixture
def rounds_only_add() -> Callable[..., None]:
    """`rounds_only_add(model, pruner, input_ids)` asserts it of two rounds."""

    def check(model: PreTrainedModel, pruner: LinearPruner, input_ids: Tensor) -> None:
        before: dict[str, Tensor] = {}
        for fraction in (0.5, 1.0):
            prune(model, pruner.scale(fraction), input_ids)
            zeros = {
                f"{i}.{name}": weight.value == 0
                for i, block in enumerate(decoder_blocks(model)[1])
                for name, weight in block_weights(block).items()
            }
            for name, gone in before.items():
                assert not (gone & ~zeros[name]).any(), name
            before = zeros

    return check


@pytest.fixture
def random_layer() -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """`random_layer(seed)`: inputs (512, 96) whose channels are mixed, and a weight (64, 96)."""

    def make(seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(512, 96)) @ rng.normal(size=(96, 96))
        return x * rng.uniform(1, 4, size=96), rng.normal(size=(64, 96))

    return make


@pytest.fixture
def best_weights() -> Callable[..., np.ndarray]:
    """`best_weights(x, weight, keep)`: least squares on the kept inputs of each row, in float64."""

    def solve(x: np.ndarray, weight: np.ndarray, keep: np.ndarray) -> np.ndarray:
        found, x = np.zeros_like(weight), np.linalg.qr(x, mode="r")  # fewer rows, same losses
        for row, own in enumerate(keep):
            found[row, own] = np.linalg.lstsq(x[:, own], x @ weight[row], rcond=None)[0]
        return found

    return solve
