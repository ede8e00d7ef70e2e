"""What tasks on prompts, which models write on from, share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunelit.data.rows import hash_rows, load_rows
from prunelit.data.tokens import decode, encode, encode_text, pad, pad_token
from prunelit.errors import InputError
from prunelit.tasks.base import Task
from prunelit.tasks.prompting.text_template import check_template


@dataclass
class Written:
    """Prompts and what follows them, as one batch that a model reads in one pass.

    Decoding step s is the position whose logits choose the s-th token after the prompt: the last
    token of the prompt is the position of step 0.

    Args:
        input_ids: (B, T), prompts left-padded, then the tokens after them.
        attention_mask: (B, T), 0 at padding on either side.
        prompt: P, positions of the prompts.
        steps: (B, S) bool, False where the text has ended before that step's token.
    """

    input_ids: Tensor
    attention_mask: Tensor
    prompt: int
    steps: Tensor

    @property
    def positions(self) -> slice:
        """The S positions of the decoding steps."""
        return slice(self.prompt - 1, self.prompt - 1 + self.steps.shape[1])


def written(input_ids: Tensor, attention_mask: Tensor, tokens: Tensor) -> Written:
    """Put prompts and rollouts together.

    Args:
        input_ids: (B, P), left-padded prompts.
        attention_mask: (B, P).
        tokens: (B, S) ids of the rollouts, -1 after their end.
    """
    there = tokens >= 0
    return Written(
        torch.cat([input_ids, tokens.clamp(min=0)], 1),
        torch.cat([attention_mask, there.long()], 1),
        input_ids.shape[1],
        there,
    )


class PromptTask(Task):
    """A task whose items are prompts.

    Args:
        path: rows, see `prunelit.data.rows.load_rows`.
        split: of the data set.
        column: that is filled into the template.
        template: of the user's message, with the field `{context}`.
        chat: wrap the message in the tokenizer's chat template.
        max_new_tokens: budget of a rollout.
        limit: number of prompts; None is all.
        batch_size: prompts a batch.
        name: of the task.
    """

    def __init__(
        self,
        path: str,
        split: str,
        column: str,
        template: str,
        chat: bool,
        max_new_tokens: int,
        limit: int | None,
        batch_size: int,
        name: str,
    ) -> None:
        super().__init__(name, batch_size)
        if max_new_tokens < 1:
            raise InputError(f"Expected `max_new_tokens` of at least 1 but got {max_new_tokens}.")
        self.path = path
        self.split = split
        self.column = column
        self.template = template
        self.chat = chat
        self.max_new_tokens = max_new_tokens
        self.limit = limit

    def read(self) -> None:
        check_template(self.template, "context")
        rows = load_rows(self.path, columns=[self.column], split=self.split, limit=self.limit)
        self.contexts = [row[self.column] for row in rows]
        for number, context in enumerate(self.contexts):
            if not isinstance(context, str) or not context.strip():
                raise InputError(f"Row {number} of {self.path!r}: {self.column!r} is not a text.")

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> int:
        if self.chat and not tokenizer.chat_template:
            raise InputError(
                f"The task {self.name!r} asks for a chat template but the tokenizer has none: set "
                "`chat: false` and give a `template`."
            )
        self._tokenizer = tokenizer
        # A chat template writes special tokens itself.
        tokens = encode if self.chat else encode_text
        self._tokens = [tokens(tokenizer, self._prompt(n)) for n in range(len(self.contexts))]
        self.longest = max(map(len, self._tokens)) + self.max_new_tokens
        return len(self._tokens)

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        tokens = [self._tokens[index] for index in indices]
        return {**pad(tokens, pad_token(self._tokenizer), left=True), "prompts": list(indices)}

    def details(self) -> dict[str, Any]:
        """What makes a number on these prompts comparable."""
        return {
            "path": self.path,
            "split": self.split,
            "prompts_sha256": hash_rows(self.contexts),
            "template": self.template,
            "chat": self.chat,
            "max_new_tokens": self.max_new_tokens,
        }

    def text(self, tokens: Tensor) -> str:
        """What a rollout, (S,) ids with -1 after its end, reads as."""
        return decode(self._tokenizer, tokens[tokens >= 0].tolist()).strip()

    def _prompt(self, index: int) -> str:
        message = self.template.format(context=self.contexts[index])
        return self.conversation([message]) if self.chat else message

    def conversation(self, messages: Sequence[str]) -> str:
        """Messages of the user and the model in turns, after which the model is to write.

        Args:
            messages: beginning and ending with the user's.
        """
        roles = ("user", "assistant")
        turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(messages)]
        prompt = self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        assert isinstance(prompt, str)
        return prompt
