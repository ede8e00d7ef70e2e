"""End a rollout at a stop string."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from prunelit.errors import InputError

# Extra tokens before the longest stop string: some decoders drop a space of the first token.
_MARGIN = 4


class StopStrings(StoppingCriteria):
    """End a row when its new text contains one of the strings; for one call of `generate`.

    Only new tokens count: a string that starts in the prompt does not end the row. This differs
    from `stop_strings` of transformers, which also uses the last tokens of the prompt.

    Args:
        tokenizer: tokenizer of the model.
        strings: stop strings, none empty.
        prompt: P, number of positions of the prompts.

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
        # A token has at least one byte, so a stop string has at most one token per byte.
        self._window = max((len(string.encode()) for string in strings), default=0) + _MARGIN
        self._last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Return (B,) bool, True for rows of `input_ids`, (B, P + S), with a stop string."""
        written = input_ids.shape[1] - self._prompt
        window = input_ids[:, -min(written, self._window) :]
        texts = self._tokenizer.batch_decode(window, clean_up_tokenization_spaces=False)
        found = torch.tensor([any(s in text for s in self._strings) for text in texts])
        if self._last is None:
            self._last = torch.full((len(input_ids),), -1)
        self._last[found & (self._last < 0)] = written - 1
        return (self._last >= 0).to(input_ids.device)

    def ends(self, steps: int) -> Tensor:
        """Return (B, steps) bool, True at the step that completed the first stop string."""
        assert self._last is not None
        return torch.arange(steps) == self._last[:, None]


def cut_at_stop(text: str, strings: Sequence[str]) -> str:
    """Return the text before its first stop string."""
    places = [place for string in strings if (place := text.find(string)) >= 0]
    return text[: min(places)] if places else text
