"""Forward methods that are replaced come back."""

import pytest
from torch import nn
from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks
from prunelit.models.forwards import replaced_forwards


def test_forward_comes_back_after_an_error(model: PreTrainedModel) -> None:
    blocks = decoder_blocks(model)[1]
    seen = []

    def fail() -> None:
        with replaced_forwards(dict.fromkeys(blocks, lambda x: x)):
            seen.extend("forward" in vars(block) for block in blocks)
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fail()
    assert seen == [True] * len(blocks)
    assert not any("forward" in vars(block) for block in blocks)


def test_another_forward_that_was_there_comes_back() -> None:
    module = nn.Linear(1, 1)
    module.forward = before = lambda x: 2 * x  # type: ignore[assignment,method-assign]
    with replaced_forwards({module: lambda x: 3 * x}):
        assert module(1) == 3
    assert module.forward is before
    assert module(1) == 2
