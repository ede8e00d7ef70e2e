"""Options of embeddings, for both models."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prunelit import InputError
from prunelit.models.model_pair import ModelPair
from prunelit.tasks import SemanticSimilarity


def make(**options: Any) -> SemanticSimilarity:
    return SemanticSimilarity("rows.jsonl", **options)


@pytest.mark.parametrize(
    ("layer", "dense", "pruned"), [(None, None, None), (1, 1, 1), (2, 2, 1), (3, 3, 2)]
)
def test_a_layer_counts_the_blocks_that_pruning_removed(
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    layer: int | None,
    dense: int | None,
    pruned: int | None,
) -> None:
    model = make_model("llama")
    pair = ModelPair(model, model, tokenizer, removed_blocks=[1])
    task = make(layer=layer, pooling="mean", skip=1)
    for name, blocks in (("dense", dense), ("pruned", pruned)):
        options = task.embed_options(pair, name)
        assert options == {"pooling": "mean", "skip": 1, "blocks": blocks}


def test_options_that_do_not_fit_are_refused(make_model: Callable[..., PreTrainedModel]) -> None:
    with pytest.raises(InputError, match="Expected `pooling` to be one of"):
        make(pooling="max")
    with pytest.raises(InputError, match="Expected `skip` 0"):
        make(pooling="last", skip=1)
    with pytest.raises(InputError, match=r"Expected `layer` in \[0, 3\]"):
        make(layer=4).check(make_model("llama"))


def test_the_details_have_every_option(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", 0)]
    )
    task = make(length=None)
    task._tokenizer = tokenizer
    assert task.embedding_details() == {
        "bos": None,
        "eos": "<end>",
        "pooling": "last",
        "skip": 0,
        "layer": None,
        "length": None,
        "similarity": "cosine",
    }
