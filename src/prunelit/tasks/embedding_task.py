"""Base of the tasks on embeddings of whole texts."""

from typing import Any

from transformers import PreTrainedModel

from prunelit.models.inference.embedding import (
    Pooling,
    blocks_before,
    check_layer,
    check_pooling,
)
from prunelit.models.model_pair import ModelPair
from prunelit.tasks.base import Task


class EmbeddingTask(Task):
    """A task that turns every text into one vector.

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

    def check(self, model: PreTrainedModel) -> None:
        check_layer(model, self.layer)

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
        return {
            "pooling": self.pooling,
            "skip": self.skip,
            "layer": self.layer,
            "length": self.length,
            "similarity": "cosine",
        }
