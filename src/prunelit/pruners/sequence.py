"""Several methods, one after another."""

import copy
from collections.abc import Mapping
from collections.abc import Sequence as Items
from itertools import product
from typing import NoReturn

from torch import nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.rebuilding import changed, is_readable
from prunelit.pruners.base import Probe, Pruner
from prunelit.pruners.linear_pruner import LinearPruner


class Sequence(Pruner):
    """Prune by several methods, each on what those before it left.

    Each method takes new statistics of the model as it is then. All passes read the same text.
    Parts that a method takes out count for no later one: `Wanda` at 50% after `Neuron` removes half
    of the weights of the neurons that are left. A removed weight stays 0 when a later method
    rounds. There is one report and one folder. In rounds, each round runs all methods.

    Args:
        methods: at least one, in their order.

    Example:
        >>> import torch
        >>> from prunelit import prune
        >>> from prunelit.pruners import Neuron, Sequence, Wanda
        >>> from prunelit.sparsity import Unstructured
        >>> from transformers import AutoModelForCausalLM, LlamaConfig
        >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32,
        ...                      num_hidden_layers=2, num_attention_heads=2)
        >>> model = AutoModelForCausalLM.from_config(config)
        >>> methods = Sequence([Neuron(0.25), Wanda(Unstructured(0.5))])
        >>> report = prune(model, methods, torch.arange(64).view(4, 16))
        >>> weight = model.model.layers[0].mlp.down_proj.weight
        >>> weight.shape, int((weight == 0).sum())
        (torch.Size([16, 24]), 192)
    """

    def __init__(self, methods: list[Pruner]) -> None:
        if not methods:
            raise InputError("Expected at least one method in `methods` but got none.")
        self.methods = methods
        self._steps: list[Pruner] = []
        for method in (step for one in methods for step in one.steps):
            if isinstance(method, LinearPruner) and any(step.shrinks for step in self._steps):
                method = copy.copy(method)
                method.skips_zeros = True
            self._steps.append(method)
        self._check_order()
        self.sparsifies = any(step.sparsifies for step in self._steps)
        self.shrinks = any(step.shrinks for step in self._steps)
        self.by_block = any(step.by_block for step in self._steps)
        self.drops_blocks = any(step.drops_blocks for step in self._steps)
        self.narrows_stream = any(step.narrows_stream for step in self._steps)
        self.drops_sublayers = any(step.drops_sublayers for step in self._steps)
        self.drops_experts = any(step.drops_experts for step in self._steps)

    @property
    def steps(self) -> Items[Pruner]:
        return self._steps

    def _check_order(self) -> None:
        """Refuse methods that would take what an earlier one took out for their own."""
        for index, method in enumerate(self._steps):
            before = self._steps[:index]
            name = type(method).__name__
            for earlier in before:
                if earlier.drops_experts:
                    raise InputError(
                        f"Expected {type(earlier).__name__} as the last of `methods` but {name} "
                        "follows: routers choose dropped experts until the folder is written. "
                        f"Prune its folder by {name} in a second run."
                    )
            if method.drops_sublayers and (twice := _first_dropping(before)):
                raise InputError(
                    f"Expected one method that drops sublayers or blocks in `methods` but got "
                    f"{twice} and {name}: use one of them."
                )
            if getattr(method, "reorders", False) and before:
                raise InputError(
                    f"Expected {name} with `permute` as the first of `methods`: it would move what "
                    "an earlier one removed. Set `permute` to false, or prune in two runs."
                )
            for earlier in before:
                if both := [kind for kind in method.takes if kind in earlier.takes]:
                    raise InputError(
                        f"Expected one method that removes {both[0]} in `methods` but got "
                        f"{type(earlier).__name__} and {name}: the second one would count what the "
                        "first one removed as its own. Give all to one of them, or prune in two "
                        "runs."
                    )
            wide = getattr(getattr(method, "sparsity", None), "within", None) == "model"
            if wide and any(step.shrinks for step in before):
                raise InputError(
                    f"Expected `within` row or matrix of {name} after a method that takes parts "
                    "out, whose zeros would count, but got model."
                )
            if getattr(method, "allocation", None) is not None and _first_dropping(before):
                raise InputError(
                    f"Expected no `allocation` of {name} after {_first_dropping(before)}, since it "
                    "would count the dropped sublayers: leave it out."
                )

    def check(self, model: PreTrainedModel) -> None:
        for step in self._steps:
            step.check(model)
        self._check_together(model)

    def _check_together(self, model: PreTrainedModel) -> None:
        """Refuse what the configuration takes of each method alone and not of all together."""
        left = {step: own for step in self._steps if (own := step.left_fields(model)) != [{}]}
        names = " and ".join(type(step).__name__ for step in left)
        for outcome in product(*left.values()):
            fields = {name: value for own in outcome for name, value in own.items()}
            if not is_readable(changed(model.config, fields)):
                told = ", ".join(f"`{name}: {value}`" for name, value in fields.items())
                raise InputError(
                    f"Expected numbers that {type(model.config).__name__} takes together but "
                    f"{names} may leave {told}: remove other numbers of heads or channels, or one "
                    "kind of them alone."
                )

    def scale(self, fraction: float) -> "Sequence":
        return Sequence([step.scale(fraction) for step in self.methods])

    def watch(self, block: nn.Module) -> NoReturn:
        """Raise an error: `prunelit.prune` asks each of the `steps`."""
        raise TypeError("A Sequence has no probes of its own: ask each of its `steps`.")

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> NoReturn:
        """Raise an error: `prunelit.prune` asks each of the `steps`."""
        raise TypeError("A Sequence prunes no block itself: ask each of its `steps`.")


def _first_dropping(methods: Items[Pruner]) -> str | None:
    """Name the first method that drops sublayers or blocks."""
    return next((type(method).__name__ for method in methods if method.drops_sublayers), None)
