"""Outputs of all experts of a mixture, and what its router chooses if it may not choose some."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunelit.activations import Statistic, sum_ranks_
from prunelit.errors import InputError
from prunelit.models.experts import count_experts, expert_output, routed_inputs
from prunelit.models.fewer_experts import routed_tensors
from prunelit.models.forwards import replaced_forwards

_TILE = 512  # tokens at once, for which the outputs of all experts are held
_NEVER = -1e4  # a logit whose probability is 0 in every type


class _RouterSums(Statistic):
    """Sums over tokens of what a router and all experts of a mixture give.

    A probe at the input of the mixture feeds it. All experts are computed for all tokens.

    Args:
        block: a decoder block.
        name: of its fused experts.
        shape: of the sums.
        device: device of the sums.
    """

    def __init__(
        self, block: nn.Module, name: str, shape: Sequence[int], device: torch.device
    ) -> None:
        self._router = _Router(block, name)
        self._sums = torch.zeros(*shape, dtype=torch.float64, device=device)

    def all_reduce_(self) -> None:
        sum_ranks_(self._sums)


class SetLosses(_RouterSums):
    """Squared change of a mixture's output without each of some sets of experts.

    The router chooses among the experts that are left and computes their shares, as that of the
    smaller model does.

    Args:
        block: a decoder block.
        name: of its fused experts.
        sets: of experts, by their numbers.
        device: device of the sums.

    Example:
        >>> import torch
        >>> from prunelit.models.expert_outputs import SetLosses
        >>> from transformers import AutoModelForCausalLM, MixtralConfig
        >>> config = MixtralConfig(vocab_size=64, hidden_size=16, intermediate_size=8,
        ...                        num_hidden_layers=1, num_attention_heads=2,
        ...                        num_key_value_heads=2, num_local_experts=4)
        >>> block = AutoModelForCausalLM.from_config(config).model.layers[0]
        >>> losses = SetLosses(block, "mlp.experts", [(), (0,)], torch.device("cpu"))
        >>> losses.update(torch.randn(32, 16))
        >>> float(losses.value[0])
        0.0
    """

    def __init__(
        self, block: nn.Module, name: str, sets: Sequence[tuple[int, ...]], device: torch.device
    ) -> None:
        super().__init__(block, name, (len(sets),), device)
        self.sets = list(sets)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:  # type: ignore[override]
        for part in x.split(_TILE):
            with self._router.reading(part):
                hidden, own = self._router.shares(part, ())
                outputs = self._router.outputs(hidden).double()  # (N, E, D)
                products = outputs @ outputs.mT
                for place, gone in enumerate(self.sets):
                    change = (self._router.shares(part, gone)[1] - own).double()[:, None]
                    self._sums[place] += (change @ products @ change.mT).sum()

    @property
    def value(self) -> Tensor:
        """(sets,), sums over all tokens, activation units squared."""
        return self._sums


class OutputProducts(_RouterSums):
    """Inner products of the outputs of a mixture's experts, and how many tokens reach each of them.

    Args:
        block: a decoder block.
        name: of its fused experts.
        device: device of the sums.

    Example:
        >>> import torch
        >>> from prunelit.models.expert_outputs import OutputProducts
        >>> from transformers import AutoModelForCausalLM, MixtralConfig
        >>> config = MixtralConfig(vocab_size=64, hidden_size=16, intermediate_size=8,
        ...                        num_hidden_layers=1, num_attention_heads=2,
        ...                        num_key_value_heads=2, num_local_experts=4)
        >>> block = AutoModelForCausalLM.from_config(config).model.layers[0]
        >>> products = OutputProducts(block, "mlp.experts", torch.device("cpu"))
        >>> products.update(torch.randn(32, 16))
        >>> products.value[:, -1].sum()  # each token reaches two experts
        tensor(64., dtype=torch.float64)
    """

    def __init__(self, block: nn.Module, name: str, device: torch.device) -> None:
        count = count_experts(block.get_submodule(name))
        super().__init__(block, name, (count, count + 1), device)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:  # type: ignore[override]
        for part in x.split(_TILE):
            with self._router.reading(part):
                hidden, shares = self._router.shares(part, ())
            outputs = self._router.outputs(hidden).double()  # (N, E, D)
            self._sums[:, :-1] += torch.einsum("nid,njd->ij", outputs, outputs)
            self._sums[:, -1] += (shares != 0).sum(0)

    @property
    def value(self) -> Tensor:
        """(E, E + 1): inner products summed over all tokens, then the number of tokens."""
        return self._sums


class _Router:
    """Runs the mixture that holds some fused experts until it calls them.

    Args:
        block: a decoder block.
        name: of the experts.
    """

    def __init__(self, block: nn.Module, name: str) -> None:
        parent = name.rpartition(".")[0]
        self._name = name
        self._mixture, self._experts = block.get_submodule(parent), block.get_submodule(name)
        routed = {
            part: value
            for part, (value, _) in routed_tensors(block, name).items()
            if not part.startswith(f"{name}.")
        }
        self._routed = list(routed.values())
        # What stands beside router and experts, such as a shared expert, reads the same for each
        # set, so it is computed once.
        self._others = [
            child
            for part, child in self._mixture.named_children()
            if child is not self._experts
            and any(True for _ in child.parameters())
            and not any(own.startswith(f"{parent}.{part}.") for own in routed)
        ]

    @contextmanager
    def reading(self, x: Tensor) -> Iterator[None]:
        """Stop the mixture at its experts, and compute other parts of it once.

        Args:
            x: (N, D), what it reads inside.
        """
        known: dict[nn.Module, Any] = {}

        def stop(*args: Any, **kwargs: Any) -> Any:
            raise _AtExpertsError(*routed_inputs(self._experts, args, kwargs))

        def once(module: nn.Module) -> Any:
            own = module.forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                if module not in known:
                    known[module] = own(*args, **kwargs)
                return known[module]

            return forward

        others = {module: once(module) for module in self._others}
        with replaced_forwards({self._experts: stop, **others}):
            yield

    def shares(self, x: Tensor, gone: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Find what the experts read, and their shares if some of them are gone.

        Args:
            x: (N, D), what the mixture reads.
            gone: experts that the router may not choose.

        Returns:
            Hidden states (N, D'), and shares (N, E): 0 for experts that are not chosen.
        """
        bar = _Bar(self._routed, count_experts(self._experts), gone)
        try:
            with bar:
                self._mixture.forward(x[None])
        except _AtExpertsError as reached:
            hidden, chosen, shares = reached.args
        else:
            raise self._unknown()
        if gone and not (bar.used and not torch.isin(chosen, bar.gone).any()):
            raise self._unknown()
        every = shares.new_zeros(len(hidden), count_experts(self._experts))
        return hidden, every.scatter_add_(1, chosen.long(), shares)

    def outputs(self, hidden: Tensor) -> Tensor:
        """Compute the outputs of all experts, (N, E, D)."""
        count = count_experts(self._experts)
        return torch.stack([expert_output(self._experts, e, hidden) for e in range(count)], 1)

    def _unknown(self) -> InputError:
        return InputError(
            f"{type(self._mixture).__name__} routes to {self._name!r} in a form of its own, so it "
            "cannot be found out what it would choose without some of its experts: take another "
            "`criterion`, such as `reap`."
        )


class _Bar(TorchFunctionMode):
    """Makes every logit and score of some experts so low that they are not chosen.

    Args:
        routed: weights and biases of the router.
        count: number of experts.
        gone: those that are barred.

    Attributes:
        used: True if a matrix of the router gave logits.
        gone: as a tensor.
    """

    def __init__(self, routed: Sequence[Tensor], count: int, gone: Sequence[int]) -> None:
        super().__init__()
        self.used = False
        self.gone = torch.tensor(gone, dtype=torch.long, device=routed[0].device)
        # Weights and biases, and what is made of one alone, such as a copy of another type.
        self._routed = list(routed)
        self._count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [x for x in (*args, *(kwargs or {}).values()) if isinstance(x, Tensor)]
        routed = [x for x in given if any(x is own for own in self._routed)]
        if len(self.gone) and routed and isinstance(result, Tensor):
            if len(given) == 1:
                self._routed.append(result)
            elif result.ndim and result.shape[-1] == self._count:
                self.used |= any(x.numel() > self._count for x in routed)  # not only a bias
                return result.index_fill(-1, self.gone, _NEVER)
        return result


class _AtExpertsError(Exception):
    """Stop a mixture; carries hidden states, experts of each token, shares."""
