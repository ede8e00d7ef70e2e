"""Recovery: the loss that a pruned model is trained with, from text, the dense model, or both."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from prunelit.errors import InputError, check_positive, first_line, near_names
from prunelit.models.architecture import trunk, unembed
from prunelit.pruning.lora import LoRA
from prunelit.recipe import describe, describe_code, public_path

CHUNK = 512  # tokens whose logits exist at a time

# Settings of a Trainer that change the trained weights.
TRAINING = (
    *("max_epochs", "max_steps", "limit_train_batches", "accumulate_grad_batches"),
    *("gradient_clip_val", "gradient_clip_algorithm"),
)


@dataclass
class Recovery:
    """Loss of recovery fine-tuning, a weighted sum, and the parameters that it trains.

    Args:
        lm: weight of the language-model loss, in nats per token.
        kl: weight of KL(dense || pruned) of the next-token distributions at `temperature`, in nats
            per token, times temperature squared (Hinton et al. 2015, arXiv:1503.02531).
        hidden: weight of the hidden-state loss: squared distance between dense and pruned hidden
            states, divided by the mean square of the dense ones; mean over blocks and tokens.
        temperature: temperature of both distributions in the KL term.
        train: shell patterns of the parameter names to train, such as `*.mlp.*`; other parameters
            are frozen.
        lora: train low-rank adapters instead.
    """

    lm: float = 1.0
    kl: float = 0.0
    hidden: float = 0.0
    temperature: float = 1.0
    train: list[str] = field(default_factory=lambda: ["*"])
    lora: LoRA | None = None

    def __post_init__(self) -> None:
        weights = {"lm": self.lm, "kl": self.kl, "hidden": self.hidden}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise InputError(f"Expected loss weights >= 0, one of them > 0, but got {weights}.")
        check_positive("temperature", self.temperature)
        if self.lora is not None and self.train != ["*"]:
            raise InputError("Expected `train` or `lora` but got both.")

    @property
    def needs_reference(self) -> bool:
        """True if the loss needs the dense model."""
        return self.kl > 0 or self.hidden > 0

    def recipe(self, optimizer: Callable[..., Any], scheduler: Any | None) -> dict[str, Any]:
        """Describe this loss, the optimizer and the scheduler as plain data.

        Args:
            optimizer: builds the optimizer from parameters.
            scheduler: builds the scheduler from the optimizer; None if there is none.

        Raises:
            InputError: if one of them cannot be built.
        """
        built = _build(optimizer, [torch.nn.Parameter(torch.zeros(1))])
        plain = {"recovery": describe(self), "optimizer": _settings(built, built.defaults)}
        if scheduler is None:
            return plain
        schedule = _build(scheduler, built)
        if isinstance(schedule, ReduceLROnPlateau):
            raise InputError(
                "Expected an `lr_scheduler` that counts steps but got ReduceLROnPlateau, which "
                "needs a metric: use another scheduler, with `EarlyStopping` if you like."
            )
        return plain | {"lr_scheduler": _settings(schedule, schedule.state_dict())}

    def check(self, model: PreTrainedModel) -> None:
        """Refuse patterns that match nothing in `model`; change nothing.

        Raises:
            InputError: if a pattern of `train` matches no parameter, or `lora` no module.
        """
        if self.lora is not None:
            self.lora.check(model)
        names = [name for name, _ in model.named_parameters()]
        for pattern in self.train:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise InputError(
                    f"The pattern {pattern!r} of `recovery.train` matches no parameter; near "
                    f"names: {near_names(pattern, names)}."
                )

    def choose(self, model: PreTrainedModel) -> None:
        """Freeze parameters that `train` does not match, and an unembedding that the loss ignores.

        Raises:
            InputError: see `check`.
        """
        self.check(model)
        head, table = model.get_output_embeddings(), model.get_input_embeddings()
        assert head is not None
        unread = set() if self.lm or self.kl else {id(p) for p in head.parameters()}
        unread -= {id(p) for p in table.parameters()}  # tied
        for name, parameter in model.named_parameters():
            chosen = any(fnmatchcase(name, pattern) for pattern in self.train)
            parameter.requires_grad_(chosen and id(parameter) not in unread)

    def losses(
        self, pruned: PreTrainedModel, dense: PreTrainedModel | None, input_ids: Tensor
    ) -> dict[str, Tensor]:
        """Compute each part of the loss that has a weight, and their weighted sum `loss`.

        Logits are computed for 512 tokens at a time, and again in the backward pass, so that
        memory never holds (B, T, V).

        Args:
            pruned: the model that is trained.
            dense: the frozen reference; None if no part needs it.
            input_ids: (B, T), no padding.

        Returns:
            Scalars by the names `lm`, `kl_dense_pruned`, `hidden` and `loss`.
        """
        states = _hidden_states(pruned, input_ids)
        parts: dict[str, Tensor] = {}
        reference: list[Tensor] = []
        if self.needs_reference:
            assert dense is not None
            with torch.no_grad():
                reference = _hidden_states(dense, input_ids)
        if self.hidden:
            parts["hidden"] = torch.stack(
                [
                    F.mse_loss(mine.float(), theirs.float()) / theirs.float().square().mean()
                    for mine, theirs in zip(states[1:], reference[1:], strict=True)
                ]
            ).mean()
        if self.lm or self.kl:
            # The last token has no next token.
            target = input_ids[:, 1:].reshape(-1)
            h = states[-1][:, :-1].flatten(0, 1)
            h_dense = reference[-1][:, :-1].flatten(0, 1) if self.kl else None
            sums = torch.zeros(2, device=h.device)
            for start in range(0, len(target), CHUNK):
                part = slice(start, start + CHUNK)
                theirs = None if h_dense is None else h_dense[part]
                sums = sums + checkpoint(
                    self._token_losses, pruned, dense, h[part], theirs, target[part],
                    use_reentrant=False,
                )  # fmt: skip
            lm, kl = sums / len(target)
            parts |= {"lm": lm} if self.lm else {}
            parts |= {"kl_dense_pruned": kl} if self.kl else {}
        weights = {"lm": self.lm, "kl_dense_pruned": self.kl, "hidden": self.hidden}
        total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        return {"loss": total, **parts}

    def _token_losses(
        self, pruned: Any, dense: Any, h: Tensor, h_dense: Tensor | None, target: Tensor
    ) -> Tensor:
        """Sum the language-model loss and the KL term over tokens, (2,)."""
        logits = unembed(pruned, h)
        log_p = F.log_softmax(logits, -1)
        lm = F.nll_loss(log_p, target, reduction="sum") if self.lm else logits.new_zeros(())
        if h_dense is None:
            return torch.stack([lm, torch.zeros_like(lm)])
        with torch.no_grad():
            log_q = F.log_softmax(unembed(dense, h_dense) / self.temperature, -1)
        if self.temperature != 1:
            log_p = F.log_softmax(logits / self.temperature, -1)
        kl = (log_q.exp() * (log_q - log_p)).sum() * self.temperature**2
        return torch.stack([lm, kl])


def _hidden_states(model: PreTrainedModel, input_ids: Tensor) -> list[Tensor]:
    """Run the model: token embeddings, output of every block but the last, final embedding h."""
    output = trunk(model)(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        use_cache=False,
        output_hidden_states=True,
    )
    return [*output.hidden_states[:-1], output.last_hidden_state]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """Build the default optimizer."""
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)


def _build(build: Callable[..., Any], argument: Any) -> Any:
    try:
        return build(argument)
    except Exception as error:  # a class of the user may raise any error
        raise InputError(
            f"The optimizer or scheduler cannot be built with these settings: {first_line(error)}"
        ) from error


def _settings(built: Any, numbers: dict[str, Any]) -> dict[str, Any]:
    """Describe the class and the plain settings of an optimizer or a scheduler."""
    plain = {}
    for name, value in numbers.items():
        with suppress(TypeError):  # a tensor or a function is state, not a setting
            plain[name] = json.loads(json.dumps(value))  # the form in which recipes are compared
    return {"class_path": public_path(type(built)), **plain, **describe_code(type(built))}
