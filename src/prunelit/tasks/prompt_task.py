"""Base of the tasks on prompts, which the models continue."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunelit.data.rows import hash_rows, load_rows
from prunelit.data.tokens import (
    decode,
    encode,
    encode_text,
    name_tokens,
    pad,
    pad_token,
    special_tokens,
)
from prunelit.errors import InputError
from prunelit.tasks.prompting.conversation import check_chat, fill_chat
from prunelit.tasks.prompting.text_template import check_template
from prunelit.tasks.row_task import RowTask


@dataclass
class RolloutBatch:
    """Prompts followed by rollouts, as one batch for a single forward pass.

    Decoding step s is the position whose logits choose the s-th token after the prompt. Step 0 is
    the last token of the prompt.

    Args:
        input_ids: (B, T), left-padded prompts, then the tokens of the rollouts.
        attention_mask: (B, T), 0 at padding on either side.
        prompt: P, number of positions of the padded prompts.
        steps: (B, S) bool, False if the rollout ended before the token of that step.
    """

    input_ids: Tensor
    attention_mask: Tensor
    prompt: int
    steps: Tensor

    @property
    def positions(self) -> slice:
        """The S positions of the decoding steps."""
        return slice(self.prompt - 1, self.prompt - 1 + self.steps.shape[1])

    @property
    def phases(self) -> dict[str, Tensor]:
        """Two masks, (B, T) bool: `prompt`, tokens before step 0; `decode`, decoding steps."""
        decode = torch.zeros_like(self.attention_mask, dtype=torch.bool)
        decode[:, self.positions] = self.steps
        prompt = self.attention_mask.bool()
        prompt[:, self.prompt - 1 :] = False
        return {"prompt": prompt, "decode": decode}


def join_rollout(input_ids: Tensor, attention_mask: Tensor, tokens: Tensor) -> RolloutBatch:
    """Append rollouts to their prompts.

    Args:
        input_ids: (B, P), left-padded prompts.
        attention_mask: (B, P).
        tokens: (B, S) ids of the rollouts, -1 after their end.

    Example:
        >>> import torch
        >>> from prunelit.tasks.prompt_task import join_rollout
        >>> prompts, rollouts = torch.tensor([[5, 6]]), torch.tensor([[7, -1]])
        >>> batch = join_rollout(prompts, torch.ones_like(prompts), rollouts)
        >>> batch.input_ids.tolist(), batch.attention_mask.tolist()
        ([[5, 6, 7, 0]], [[1, 1, 1, 0]])
    """
    steps = tokens >= 0
    return RolloutBatch(
        torch.cat([input_ids, tokens.clamp(min=0)], 1),
        torch.cat([attention_mask, steps.long()], 1),
        input_ids.shape[1],
        steps,
    )


class PromptTask(RowTask):
    """A task whose items are prompts.

    Args:
        column: column of the rows whose text fills the template.
        template: template of the user's message, with the field `{context}`.
        chat: put the message into the tokenizer's chat template.
        max_new_tokens: maximum number of tokens of a rollout.
        kwargs: options of the other bases.
    """

    def __init__(
        self,
        column: str = "context",
        template: str = "{context}",
        chat: bool = True,
        max_new_tokens: int = 24,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if max_new_tokens < 1:
            raise InputError(f"Expected `max_new_tokens` of at least 1 but got {max_new_tokens}.")
        self.column = column
        self.template = template
        self.chat = chat
        self.max_new_tokens = max_new_tokens

    def read(self) -> None:
        check_template(self.template, "context")
        rows = load_rows(self.pinned, columns=[self.column], split=self.split, limit=self.limit)
        self.contexts = [row[self.column] for row in rows]
        for number, context in enumerate(self.contexts):
            if not isinstance(context, str) or not context.strip():
                raise self.refuse_row(number, f"`{self.column}` must be a non-empty string")

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> int:
        if self.chat:
            check_chat(tokenizer, self.name)
        self._tokenizer = tokenizer
        # A chat template contains the special tokens already.
        tokens = encode if self.chat else encode_text
        self._tokens = [tokens(tokenizer, self._prompt(n)) for n in range(len(self.contexts))]
        if empty := [number for number, ids in enumerate(self._tokens) if not ids]:
            raise self.refuse_row(
                empty[0],
                "it gives a prompt without a token: change the `template`, or set `chat: false` if "
                "the chat template leaves the message out",
            )
        self.note_longest(
            (len(ids) + self.max_new_tokens for ids in self._tokens),
            lambda item: f"{self.name_item(item)} with {self.max_new_tokens} new tokens",
        )
        return len(self._tokens)

    def name_item(self, index: int) -> str:
        """Name the row of a prompt in a message."""
        return self.name_row(index)

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        tokens = [self._tokens[index] for index in indices]
        return {**pad(tokens, pad_token(self._tokenizer), left=True), "prompts": list(indices)}

    def details(self) -> dict[str, Any]:
        """Return the options and hashes that two comparable results have in common."""
        return {
            **self.source_details(),
            "prompts_sha256": hash_rows(self.contexts),
            "template": self.template,
            "chat": self.chat,
            "bos": "as in the chat template"
            if self.chat
            else name_tokens(self._tokenizer, special_tokens(self._tokenizer).before),
            "max_new_tokens": self.max_new_tokens,
        }

    def text(self, tokens: Tensor) -> str:
        """Decode a rollout, (S,) ids with -1 after its end."""
        return decode(self._tokenizer, tokens[tokens >= 0].tolist()).strip()

    def _prompt(self, index: int) -> str:
        message = self.template.format(context=self.contexts[index])
        return self.conversation([message]) if self.chat else message

    def conversation(self, messages: Sequence[str]) -> str:
        """Put messages into the chat template, followed by the start of the model's answer.

        Args:
            messages: of user and model in turn; the first and the last are the user's.
        """
        return fill_chat(self._tokenizer, messages)
