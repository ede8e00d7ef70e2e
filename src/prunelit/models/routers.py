"""Decisions of the router of a mixture for each token, in any family."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelit.errors import InputError
from prunelit.models.experts import count_experts, find_experts, find_routers, routed_inputs

Gate = Literal["softmax", "sigmoid"]
_CLOSE = 0.01  # shares in bfloat16 are that exact


@dataclass(frozen=True)
class Mixture:
    """The mixture of a block.

    Args:
        experts: name, inside the block, of its fused experts.
        router: name of the router beside them.
        owner: name of the module of the router whose matrix has a row for each expert.
        matrix: name of this matrix inside `owner`.
    """

    experts: str
    router: str
    owner: str
    matrix: str


@dataclass(frozen=True)
class Decisions:
    """Decisions of a router for N tokens.

    Args:
        inputs: (..., D), hidden states that the router read.
        logits: (N, E) float32, output of the matrix of the router.
        chosen: (N, K), numbers of the active experts.
        shares: (N, K), weights of their outputs.
    """

    inputs: Tensor
    logits: Tensor
    chosen: Tensor
    shares: Tensor

    @property
    def active(self) -> Tensor:
        """(N, E) bool, True for the active experts of a token."""
        return torch.zeros_like(self.logits, dtype=torch.bool).scatter_(1, self.chosen, True)


def find_mixture(block: nn.Module) -> Mixture | None:
    """Find the mixture of a block; None if the block has no fused experts.

    Args:
        block: a decoder block.

    Raises:
        InputError: if there are several mixtures, or if not exactly one matrix beside the experts
            has a row for each of them.
    """
    found: list[Mixture] = []
    for name, experts in find_experts(block).items():
        count, parent = count_experts(experts), name.rpartition(".")[0]
        prefix = f"{parent}." if parent else ""
        matrices = [
            Mixture(name, prefix + owner.removeprefix(prefix).partition(".")[0], owner, matrix)
            for owner in sorted(find_routers(block))
            if owner.startswith(prefix)
            for matrix, value in block.get_submodule(owner).named_parameters(recurse=False)
            if value.ndim == 2 and count <= value.shape[0] <= 2 * count
        ]
        if len(matrices) != 1:
            raise _refuse(f"{len(matrices)} matrices beside {name!r} have a row for each expert")
        found += matrices
    if len(found) > 1:
        raise _refuse(f"{type(block).__name__} has {len(found)} mixtures")
    return found[0] if found else None


def watch_router(
    block: nn.Module, mixture: Mixture, run: Callable[[], Tensor]
) -> tuple[Tensor, Decisions]:
    """Run a block and watch its router.

    Args:
        block: a decoder block.
        mixture: of the block.
        run: runs the block.

    Returns:
        The output of the block, and what its router decided.

    Raises:
        InputError: if the router does not call its matrix, or if the experts get no list of the
            experts of each token.
    """
    with _watching(block, mixture) as seen:
        output = run()
    return output, seen.decisions(mixture)


def route_again(
    block: nn.Module, mixture: Mixture, run: Callable[[], Tensor], inputs: Tensor
) -> Decisions:
    """Let the router of a block read other hidden states. The experts are not computed.

    Args:
        block: a decoder block.
        mixture: of the block.
        run: runs the block on the same tokens.
        inputs: what the router reads in the place of its own hidden states, of the same shape.

    Returns:
        What the router decides.

    Raises:
        InputError: as `watch_router` does.
    """
    with _watching(block, mixture, inputs) as seen, suppress(_ChosenError):
        run()
    return seen.decisions(mixture)


class _ChosenError(Exception):
    """Stop a block whose router has chosen."""


class _Seen:
    """Record of the hooks of one pass."""

    def __init__(self) -> None:
        self.inputs: Tensor | None = None
        self.logits: Tensor | None = None
        self.routed: tuple[Tensor, ...] = ()

    def decisions(self, mixture: Mixture) -> Decisions:
        if self.inputs is None or self.logits is None:
            raise _refuse(f"{mixture.owner!r} is not called")
        if len(self.routed) == 3:
            return Decisions(self.inputs, self.logits, *self.routed[1:])
        tokens, experts = self.logits.shape
        if len(self.routed) != 1 or len(self.routed[0]) != experts * tokens:
            raise _refuse(f"{mixture.experts!r} gets no list of the experts of each token")
        # Llama 4: each expert reads all tokens times their shares, those that it does not get as 0.
        read = self.routed[0].view(experts, tokens, -1).float().norm(dim=-1).T
        shares = read / self.inputs.reshape(tokens, -1).float().norm(dim=-1)[:, None]
        shares, chosen = shares.topk(int((shares > 0).sum(1).amax()))
        return Decisions(self.inputs, self.logits, chosen, shares)


@contextmanager
def _watching(block: nn.Module, mixture: Mixture, inputs: Tensor | None = None) -> Iterator[_Seen]:
    """Watch a router and what its experts read, within the context.

    With `inputs`, the router reads them instead, and the block is stopped at its experts.
    """
    seen = _Seen()

    def see_inputs(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        read = [*args, *kwargs.values()]
        place = next(i for i, value in enumerate(read) if isinstance(value, Tensor))
        if inputs is not None:
            read[place] = inputs
        seen.inputs = read[place]
        return tuple(read[: len(args)]), dict(zip(kwargs, read[len(args) :], strict=True))

    def see_logits(module: nn.Module, args: Any, kwargs: Any) -> None:
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        bias = getattr(module, "bias", None)
        with torch.autocast(x.device.type, enabled=False):
            seen.logits = F.linear(
                x.reshape(-1, x.shape[-1]).float(),
                module.get_parameter(mixture.matrix).float(),
                None if bias is None else bias.float(),
            )

    def see_routed(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.routed = routed_inputs(module, args, kwargs)
        if inputs is not None:
            raise _ChosenError

    hooks = {mixture.router: [see_inputs], mixture.experts: [see_routed]}
    hooks.setdefault(mixture.owner, []).append(see_logits)
    handles = [
        block.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
        for name, own in hooks.items()
        for hook in own
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def find_gate(decisions: Decisions) -> Gate:
    """Find the function of the logits that the shares of the active experts follow.

    Args:
        decisions: for some tokens.

    Returns:
        `sigmoid` if its values are the shares, both divided by their sum over the active experts of
        a token if there are several; else `softmax`.
    """
    scores: dict[Gate, Tensor] = {
        "softmax": decisions.logits.softmax(1),
        "sigmoid": decisions.logits.sigmoid(),
    }
    shares = _relative(decisions.shares.float())
    errors = {
        gate: (_relative(own.gather(1, decisions.chosen)) - shares).abs().max().item()
        for gate, own in scores.items()
    }
    return "sigmoid" if errors["sigmoid"] < min(errors["softmax"], _CLOSE) else "softmax"


def _relative(shares: Tensor) -> Tensor:
    """Divide the shares of each token, (N, K), by their sum; a single one stays."""
    return shares / shares.sum(1, keepdim=True) if shares.shape[1] > 1 else shares


def log_scores(logits: Tensor, gate: Gate) -> Tensor:
    """Compute the logarithm of the scores that a gate makes of logits.

    Args:
        logits: (N, E).
        gate: `softmax` for exp(logit), `sigmoid` for sigmoid(logit).

    Returns:
        (N, E). Its softmax is the distribution of the router over the experts.
    """
    return F.logsigmoid(logits) if gate == "sigmoid" else logits


def _refuse(why: str) -> InputError:
    return InputError(
        f"Expected a router that chooses some experts for each token, but {why}: leave out the "
        "tasks on routers for this model."
    )
