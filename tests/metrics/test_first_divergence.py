import torch

from prunelit.metrics.first_divergence import find_first_divergence


def test_the_first_step_that_differs() -> None:
    dense = torch.tensor([[[5, 6, 7, 8], [5, 6, -1, -1]], [[1, 2, 3, -1], [1, 2, 3, 4]]])
    pruned = torch.tensor([[[5, 6, 9, 8], [5, 6, -1, -1]], [[1, 2, -1, -1], [9, 2, 3, 4]]])
    first, diverged = find_first_divergence(dense, pruned)
    # Differs at step 2; never, so its length counts; at the end of one text; at step 0.
    assert first.tolist() == [[2, 2], [2, 0]]
    assert diverged.tolist() == [[1, 0], [1, 1]]
    assert first.dtype == diverged.dtype == torch.float64
    back, _ = find_first_divergence(pruned, dense)
    assert torch.equal(first, back)
