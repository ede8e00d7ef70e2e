"""Base of the tasks on embeddings of whole texts."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.data.tokens import name_tokens, pad, pad_token, special_tokens
from prunelit.models.inference.embedding import (
    Pooling,
    blocks_before,
    check_layer,
    check_pooling,
    embed,
)
from prunelit.models.model_pair import ModelPair
from prunelit.tasks.base import Task
from prunelit.tasks.item_table import Streamed


class EmbeddingTask(Task):
    """A task that turns every text into one vector.

    A text is read with the special tokens that the tokenizer adds before and after it.

    Args:
        pooling: `last` token, `mean` over tokens, or `weighted_mean`, see
            `prunelit.models.inference.embedding.pool`.
        skip: number of tokens at the start of a text, the BOS token included, that the mean leaves
            out.
        layer: read the residual stream after this many blocks of the dense model, without the final
            norm. Blocks that pruning removed are counted too. None reads the last hidden state
            after the final norm.
        length: maximum number of tokens of a text, template included; longer texts are cut at their
            end. None does not cut.
        kwargs: options of the other bases.
    """

    own_tokenizers = True

    def __init__(
        self,
        pooling: Pooling = "last",
        skip: int = 0,
        layer: int | None = None,
        length: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_pooling(pooling, skip)
        self.pooling: Pooling = pooling
        self.skip = skip
        self.layer = layer
        self.length = length
        self.needs_equal = () if layer is None else ("num_hidden_layers",)

    # Set by `prepare` of every subclass.
    _tokenizer: PreTrainedTokenizerBase
    _tokens: Sequence[Any]

    def check(self, model: PreTrainedModel) -> None:
        check_layer(model, self.layer)

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """Pad the texts that `prepare` turned into tokens."""
        return dict(pad([self._tokens[index] for index in indices], pad_token(self._tokenizer)))

    def step(self, pair: ModelPair, batch: dict[str, Any]) -> Mapping[str, Tensor | Streamed]:
        """Return the embeddings of both models."""
        inputs = batch["input_ids"], batch["attention_mask"]
        return {
            f"{name}/embedding": pair.ask(name, embed, *inputs, **self.embed_options(pair, name))
            for name in pair.models()
        }

    def embed_options(self, pair: ModelPair, name: str) -> dict[str, Any]:
        """Return the options of `prunelit.models.inference.embedding.embed` for one model.

        Args:
            pair: the two models.
            name: `dense` or `pruned`.
        """
        removed = pair.removed_blocks if name == "pruned" else ()
        return {
            "pooling": self.pooling,
            "skip": self.skip,
            "blocks": blocks_before(self.layer, removed),
        }

    def embedding_details(self) -> dict[str, Any]:
        """Return the options that an embedding depends on."""
        special = special_tokens(self._tokenizer)
        return {
            "bos": name_tokens(self._tokenizer, special.before),
            "eos": name_tokens(self._tokenizer, special.after),
            "pooling": self.pooling,
            "skip": self.skip,
            "layer": self.layer,
            "length": self.length,
            "similarity": "cosine",
        }


def same_width(vectors: Sequence[Tensor]) -> bool:
    """Return True for the vectors of two models of the same width, which have a cosine.

    Args:
        vectors: (B, D) of each model, with a D of its own.
    """
    return len(vectors) == 2 and vectors[0].shape[-1] == vectors[1].shape[-1]
