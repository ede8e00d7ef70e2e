from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit import prune
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, oriented_weight
from prunelit.models.neurons import find_neurons
from prunelit.pruners import Neuron


@pytest.mark.parametrize("ratio", [0.25, 0.4])
def test_neurons_that_matter_least_go(
    family: str,
    make_model: Callable[..., PreTrainedModel],
    padded: dict[str, Tensor],
    read_stream: Callable[..., object],
    ratio: float,
) -> None:
    model = make_model(family)
    block = decoder_blocks(model)[1][0]  # whose inputs no earlier pruning changes
    mlp = find_neurons(block)
    assert mlp is not None
    seen: list[Tensor] = []
    real = padded["attention_mask"].bool()
    handle = block.get_submodule(mlp.output).register_forward_pre_hook(
        lambda _m, args: seen.append(args[0].view(*real.shape, -1)[real])
    )
    read_stream(model, padded)
    handle.remove()
    down = oriented_weight(block.get_submodule(mlp.output)).detach().double().numpy().copy()
    scores = np.abs(down).mean(0) * (seen[0].double().numpy() ** 2).mean(0)
    gone = np.argsort(scores)[: round(ratio * len(scores))]
    prune(model, Neuron(ratio), [padded], shrink=False)
    after = oriented_weight(block.get_submodule(mlp.output)).detach().numpy()
    np.testing.assert_array_equal(np.flatnonzero(~after.any(0)), np.sort(gone))
    kept = np.delete(np.arange(len(scores)), gone)
    np.testing.assert_allclose(after[:, kept], down[:, kept], rtol=1e-6)
    for name in mlp.inputs:
        linear = block.get_submodule(name)
        rows = oriented_weight(linear).detach().numpy()
        np.testing.assert_array_equal(np.flatnonzero(~rows.any(1)), np.sort(gone))
        if getattr(linear, "bias", None) is not None:
            assert not linear.bias[torch.from_numpy(gone)].any()


def test_ratio_of_all_is_refused() -> None:
    with pytest.raises(InputError, match=r"`ratio` in \[0, 1\) but got 1\.0"):
        Neuron(1.0)
