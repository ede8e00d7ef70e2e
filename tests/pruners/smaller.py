"""A smaller model against the one with zeros in its place, and against its folder."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunelit import save_pretrained
from prunelit.pruning import PruningReport


def check_smaller(
    zeros: PreTrainedModel,
    small: PreTrainedModel,
    report: PruningReport,
    padded: dict[str, Tensor],
    tokenizer: Any,
    folder: Path,
    atol: float,
) -> PreTrainedModel:
    """Check logits, the stock folder and what is written with and without a cache.

    Returns:
        The model of the folder.
    """
    real = padded["attention_mask"].bool()
    positions = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    expected = zeros(**padded, position_ids=positions).logits[real]
    found = small(**padded, position_ids=positions).logits[real]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=atol)
    save_pretrained(small, tokenizer, folder / "pruned", report)
    stock, info = AutoModelForCausalLM.from_pretrained(folder / "pruned", output_loading_info=True)
    assert not info["missing_keys"]
    assert stock(**padded, position_ids=positions).logits[real].equal(found)
    assert sum(p.numel() for p in stock.parameters()) == report.stored_parameters
    assert report.stored_parameters < report.parameters

    def rollout(model: Any, cached: bool) -> Tensor:
        return model.generate(
            **padded, max_new_tokens=8, do_sample=False, use_cache=cached, eos_token_id=None
        )

    texts = [rollout(stock, True), rollout(stock, False), rollout(small, True)]
    assert all(text.equal(rollout(zeros, True)) for text in texts)
    return stock
