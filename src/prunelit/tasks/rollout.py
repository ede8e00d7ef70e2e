"""What the models write: greedy answers, and where they part."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunelit.errors import InputError
from prunelit.models.generation import rollout
from prunelit.report.rows import Row
from prunelit.rows import hash_rows
from prunelit.tasks.base import Pair, Task
from prunelit.tasks.items import ItemTable
from prunelit.tasks.questions import check_template, load_questions
from prunelit.tokens import encode, pad, pad_token


class Rollout(Task):
    """Greedy rollouts of both models from the same prompts (free-running: each reads its own text).

    Metrics, means over prompts: `exact_match` of answer and target after normalising case,
    punctuation and spaces; `contains` the target as whole words; `repetition`, the fraction of
    4-grams of tokens that repeat an earlier one; `end_of_text`, whether the model stopped by
    itself; `length` in tokens. Of the pair: `first_divergence`, the step (from 0) of the first
    token that differs, where a pair that never differs counts its whole length; and `diverged`,
    the share that differs at all.

    Args:
        path: rows `{id, context, choices, label}`, see `prunelit.rows.load_rows`; the right choice
            is the target.
        split: of the data set.
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
        split: str = "train",
        template: str = "{context}",
        chat: bool = True,
        max_new_tokens: int = 24,
        limit: int | None = None,
        batch_size: int = 32,
        name: str = "rollout",
    ) -> None:
        super().__init__(name, batch_size)
        if max_new_tokens < 1:
            raise InputError(f"Expected `max_new_tokens` of at least 1 but got {max_new_tokens}.")
        self.path = path
        self.split = split
        self.template = template
        self.chat = chat
        self.max_new_tokens = max_new_tokens
        self.limit = limit

    def read(self) -> None:
        check_template(self.template, "context")
        self._questions = load_questions(self.path, self.split, self.limit)

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> int:
        if self.chat and not tokenizer.chat_template:
            raise InputError(
                f"The task {self.name!r} asks for a chat template but the tokenizer has none: set "
                "`chat: false` and give a `template`."
            )
        self._tokenizer = tokenizer
        self._prompts = [self._prompt(question.context) for question in self._questions]
        self._tokens = [encode(tokenizer, prompt) for prompt in self._prompts]
        self.longest = max(map(len, self._tokens)) + self.max_new_tokens
        return len(self._tokens)

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        tokens = [self._tokens[index] for index in indices]
        padded = pad(tokens, pad_token(self._tokenizer), left=True)
        return {**padded, "questions": list(indices)}

    def step(self, pair: Pair, batch: dict[str, Any]) -> dict[str, Tensor]:
        targets = [self._questions[index].answer for index in batch["questions"]]
        values: dict[str, Tensor] = {}
        for name, model in pair.models().items():
            written = rollout(
                model,
                pair.tokenizer,
                batch["input_ids"],
                batch["attention_mask"],
                max_new_tokens=self.max_new_tokens,
            )
            tokens = written.tokens.cpu()
            answers = [self._text(row) for row in tokens]
            columns = {
                "exact_match": [
                    normalise(a) == normalise(t) for a, t in zip(answers, targets, strict=True)
                ],
                "contains": [contains(a, t) for a, t in zip(answers, targets, strict=True)],
                "repetition": [repetition(row[row >= 0].tolist()) for row in tokens],
                "end_of_text": written.ended.tolist(),
                "length": (tokens >= 0).sum(1).tolist(),
            }
            values[f"{name}/tokens"] = tokens
            for metric, column in columns.items():
                values[f"{name}/{metric}"] = torch.tensor(column, dtype=torch.float64)
        if pair.dense is not None:
            different = values["dense/tokens"] != values["pruned/tokens"]
            length = torch.maximum(values["dense/length"], values["pruned/length"])
            diverged = different.any(1)
            first = different.int().argmax(1).double()
            values["first_divergence"] = torch.where(diverged, first, length)
            values["diverged"] = diverged.double()
        return values

    def summarise(self, table: ItemTable) -> list[Row]:
        details = {
            "path": self.path,
            "split": self.split,
            "rows_sha256": hash_rows([vars(question) for question in self._questions]),
            "template": self.template,
            "chat": self.chat,
            "max_new_tokens": self.max_new_tokens,
            "decoding": "greedy",
        }
        metrics = ["exact_match", "contains", "repetition", "end_of_text", "length"]
        rows = table.paired_rows(self.name, metrics, details)
        return rows + table.pair_rows(self.name, ["first_divergence", "diverged"], details)

    def texts(self, table: ItemTable) -> list[dict[str, str]]:
        """Question, target and both answers, for a text table."""
        rows = []
        for index, question in enumerate(self._questions):
            row = {"prompt": question.context, "target": question.answer}
            for name in ("dense", "pruned"):
                if f"{name}/tokens" in table:
                    row[name] = self._text(table[f"{name}/tokens"][index])
            rows.append(row)
        return rows

    def _prompt(self, context: str) -> str:
        message = self.template.format(context=context)
        if not self.chat:
            return message
        prompt = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
        )
        assert isinstance(prompt, str)
        return prompt

    def _text(self, tokens: Tensor) -> str:
        text = self._tokenizer.decode(tokens[tokens >= 0].tolist(), skip_special_tokens=True)
        assert isinstance(text, str)
        return text.strip()


def normalise(text: str) -> str:
    """Lower case, without punctuation, single spaces."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w\s]", " ", text).split())


def contains(answer: str, target: str) -> bool:
    """Whether the target stands in the answer as whole words, after `normalise`."""
    return f" {normalise(target)} " in f" {normalise(answer)} "


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """Fraction of n-grams that repeat an earlier one; 0 for fewer than two n-grams."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
