"""The two models of a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.errors import InputError
from prunelit.metrics.spaces.logit_gram import LogitGram
from prunelit.models.architecture import decoder_blocks
from prunelit.models.dense_answers import DenseAnswers
from prunelit.models.fingerprint import fingerprint
from prunelit.models.unembedding import shared_gram
from prunelit.models.views import original

_Answer = TypeVar("_Answer")


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
        answers: what the dense model gave earlier; None asks it every time.
        kept_experts: numbers, in the dense model, of the experts that each mixture of the pruned
            model still has, by `index.name` in the pruned model; empty if it has all.

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
    answers: DenseAnswers | None = None
    kept_experts: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def models(self) -> dict[str, PreTrainedModel]:
        """Return `{"dense": ..., "pruned": ...}`, without `dense` if the run keeps no reference."""
        if self.dense is None:
            return {"pruned": self.pruned}
        return {"dense": self.dense, "pruned": self.pruned}

    def ask(
        self,
        name: str,
        function: Callable[..., _Answer],
        *inputs: Any,
        memo: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> _Answer:
        """Call a function with one of the models; what the dense model gave earlier is read.

        Args:
            name: `dense` or `pruned`.
            function: gets the model, `inputs` and `settings`, on which alone its result depends. It
                returns a tensor, or a mapping or a dataclass of tensors, as its annotation says.
            inputs: tensors, tokenizers, plain data, and containers and dataclasses of these.
            memo: further arguments that change no value, such as a `SharedPrefix`.
            settings: as `inputs`, by name.

        Returns:
            The result of the function. From disk it is equal bit for bit.

        Example:
            >>> import torch
            >>> from transformers import AutoModelForCausalLM, LlamaConfig
            >>> from prunelit.models.architecture import final_hidden
            >>> from prunelit.tasks import ModelPair
            >>> config = LlamaConfig(vocab_size=8, hidden_size=4, intermediate_size=8,
            ...                      num_hidden_layers=2, num_attention_heads=1)
            >>> model = AutoModelForCausalLM.from_config(config)
            >>> pair = ModelPair(pruned=model, dense=model, tokenizer=None)
            >>> ids = torch.tensor([[1, 2, 3]])
            >>> pair.ask("dense", final_hidden, ids, torch.ones_like(ids)).shape
            torch.Size([1, 3, 4])
        """
        model = self.models()[name]
        if self.answers is not None and original(model) is self.answers.model:
            return self.answers.ask(function, inputs, settings, memo or {}, model)
        return function(model, *inputs, **settings, **(memo or {}))

    def fingerprint(self, name: str) -> str:
        """Return the hash of all weights of one model.

        Args:
            name: `dense` or `pruned`.
        """
        model = self.models()[name]
        if self.answers is not None and original(model) is self.answers.model:
            return self.answers.fingerprint
        return fingerprint(model)

    def logit_gram(self) -> LogitGram | None:
        """Return what gives the logit space without logits, see `shared_gram`; None if nothing."""
        return None if self.dense is None else shared_gram(self.dense, self.pruned)

    def kept_blocks(self) -> dict[int, int]:
        """Map each block of the dense model that the pruned model still has to its place there.

        Raises:
            InputError: if `removed_blocks` are not the blocks that the pruned model lacks.
        """
        assert self.dense is not None
        blocks, have = (len(decoder_blocks(m)[1]) for m in (self.dense, self.pruned))
        kept = [index for index in range(blocks) if index not in self.removed_blocks]
        if len(kept) != have:
            raise InputError(
                f"Expected a pruned model with {len(kept)} blocks ({len(self.removed_blocks)} of "
                f"{blocks} are removed) but it has {have}."
            )
        return {index: place for place, index in enumerate(kept)}

    def alone(self, name: str) -> "ModelPair":
        """Return one model with its own tokenizer, as the pruned model of a pair without dense.

        Args:
            name: `dense` or `pruned`.
        """
        if name == "dense":
            assert self.dense is not None
            return ModelPair(self.dense, None, self.tokenizer, answers=self.answers)
        own = self.pruned_tokenizer or self.tokenizer
        return ModelPair(self.pruned, None, own, self.removed_blocks)
