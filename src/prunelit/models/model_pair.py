"""The two models of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class ModelPair:
    """The dense model and the pruned model that is compared with it.

    It is a plain object. A Lightning module that holds one therefore does not register the two
    models as its submodules.

    Args:
        pruned: the model under test.
        dense: the frozen reference; None if the run keeps none (`model.reference: false`).
        tokenizer: of both models, or of the dense model alone.
        removed_blocks: indices, in the dense model, of the blocks that the pruned model lacks.
        pruned_tokenizer: of the pruned model, if it has another one.

    Example:
        >>> from transformers import AutoModelForCausalLM, LlamaConfig
        >>> from prunelit.tasks import ModelPair
        >>> config = LlamaConfig(vocab_size=8, hidden_size=4, intermediate_size=8,
        ...                      num_hidden_layers=2, num_attention_heads=1)
        >>> model = AutoModelForCausalLM.from_config(config)
        >>> pair = ModelPair(pruned=model, dense=model, tokenizer=None)
        >>> list(pair.models())
        ['dense', 'pruned']
    """

    pruned: PreTrainedModel
    dense: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    removed_blocks: Sequence[int] = ()
    pruned_tokenizer: PreTrainedTokenizerBase | None = None

    def models(self) -> dict[str, PreTrainedModel]:
        """Return `{"dense": ..., "pruned": ...}`, without `dense` if the run keeps no reference."""
        if self.dense is None:
            return {"pruned": self.pruned}
        return {"dense": self.dense, "pruned": self.pruned}

    def alone(self, name: str) -> "ModelPair":
        """Return one model with its own tokenizer, as the pruned model of a pair without dense.

        Args:
            name: `dense` or `pruned`.
        """
        if name == "dense":
            assert self.dense is not None
            return ModelPair(self.dense, None, self.tokenizer)
        own = self.pruned_tokenizer or self.tokenizer
        return ModelPair(self.pruned, None, own, self.removed_blocks)
