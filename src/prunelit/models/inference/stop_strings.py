"""Texts at which a rollout ends."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from prunelit.errors import InputError

# Tokens read before the longest stop string: some decoders take a space from the first one.
_MARGIN = 4


class StopStrings(StoppingCriteria):
    """Ends a row when one of the strings stands in what it wrote; for one call of `generate`.

    Only new tokens count: a string that begins in the prompt ends nothing. Differs from
    `stop_strings` of transformers, which reads on from the prompt's last tokens.

    Args:
        tokenizer: of the model.
        strings: none empty.
        prompt: P, positions of the prompts.

    Raises:
        InputError: if a string is empty.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str], prompt: int
    ) -> None:
        if not all(strings):
            raise InputError(f"Expected stop strings that are not empty but got {list(strings)}.")
        self._tokenizer = tokenizer
        self._strings = list(strings)
        self._prompt = prompt
        # A token is at least one byte, so no stop string is spread over more tokens.
        self._window = max((len(string.encode()) for string in strings), default=0) + _MARGIN
        self._last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """(B,) bool, whether each row of `input_ids`, (B, P + S), has written a stop string."""
        written = input_ids.shape[1] - self._prompt
        window = input_ids[:, -min(written, self._window) :]
        texts = self._tokenizer.batch_decode(window, clean_up_tokenization_spaces=False)
        found = torch.tensor([any(s in text for s in self._strings) for text in texts])
        if self._last is None:
            self._last = torch.full((len(input_ids),), -1)
        self._last[found & (self._last < 0)] = written - 1
        return (self._last >= 0).to(input_ids.device)

    def ends(self, steps: int) -> Tensor:
        """(B, steps) bool, True at the step whose token completed a row's first stop string."""
        assert self._last is not None
        return torch.arange(steps) == self._last[:, None]


def cut_at_stop(text: str, strings: Sequence[str]) -> str:
    """The text before the first stop string in it."""
    places = [place for string in strings if (place := text.find(string)) >= 0]
    return text[: min(places)] if places else text
