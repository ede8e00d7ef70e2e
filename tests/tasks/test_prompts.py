"""Prompts and what follows them, as one batch."""

import torch

from prunelit.tasks.prompts import written


def test_prompts_and_rollouts_are_put_together() -> None:
    ids = torch.tensor([[0, 5, 6], [7, 8, 9]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    tokens = torch.tensor([[1, 2], [3, -1]])
    text = written(ids, mask, tokens)
    assert text.input_ids.tolist() == [[0, 5, 6, 1, 2], [7, 8, 9, 3, 0]]
    assert text.attention_mask.tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert text.steps.tolist() == [[True, True], [True, False]]
    # The last token of the prompt chooses the first one after it.
    assert text.prompt == 3
    assert text.positions == slice(2, 4)
