"""Multiple choice by log-likelihood of the choices."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunelit.errors import InputError
from prunelit.models.scoring import continuation_scores
from prunelit.report.rows import Row
from prunelit.rows import hash_rows
from prunelit.tasks.base import Pair, Task
from prunelit.tasks.items import ItemTable
from prunelit.tasks.questions import check_template, load_questions
from prunelit.tokens import encode, pad, pad_token


class MultipleChoice(Task):
    """Which choice does the model find most likely after the context?

    `acc` takes the highest summed log-likelihood, `acc_norm` the highest per UTF-8 byte of the
    choice; `chance` is the mean of 1 / number of choices. Prompts and tokens are those of
    lm-evaluation-harness (context and continuation are tokenised together, spaces at the end of the
    context belong to the continuation). Differs from it in `acc_norm` alone, which there divides by
    characters: the same for ASCII.

    Args:
        path: rows `{id, context, choices, label}`, see `prunelit.rows.load_rows`.
        split: of the data set.
        template: of the prompt, with the field `{context}`.
        delimiter: between prompt and choice.
        limit: number of rows; None is all.
        batch_size: questions a batch.
        name: of the task.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        template: str = "Question: {context}\nAnswer:",
        delimiter: str = " ",
        limit: int | None = None,
        batch_size: int = 16,
        name: str = "multiple_choice",
    ) -> None:
        super().__init__(name, batch_size)
        self.path = path
        self.split = split
        self.template = template
        self.delimiter = delimiter
        self.limit = limit

    def read(self) -> None:
        check_template(self.template, "context")
        self._questions = load_questions(self.path, self.split, self.limit)

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> int:
        self._pad_id = pad_token(tokenizer)
        self._requests = []
        for question in self._questions:
            prompt = self.template.format(context=question.context)
            texts = [self.delimiter + choice for choice in question.choices]
            requests = [split_tokens(tokenizer, prompt, text) for text in texts]
            if not all(context and continuation for context, continuation in requests):
                raise InputError(
                    f"A choice of the row {question.id!r} adds no token to the prompt: "
                    "give another `template` or `delimiter`."
                )
            self._requests.append(requests)
            self.longest = max(self.longest, *(len(c) + len(k) - 1 for c, k in requests))
        return len(self._questions)

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        sequences: list[list[int]] = []
        spans: list[tuple[int, int, int]] = []
        targets: list[int] = []
        for index in indices:
            start = len(sequences)
            requests = self._requests[index]
            # Causal models see only what stands before, so one pass over the longest input also
            # scores every choice whose input is a beginning of it.
            for context, continuation in sorted(requests, key=lambda r: -len(r[0]) - len(r[1])):
                read = [*context, *continuation[:-1]]
                if not any(other[: len(read)] == read for other in sequences[start:]):
                    sequences.append(read)
            for context, continuation in requests:
                read = [*context, *continuation[:-1]]
                row = next(
                    i for i in range(start, len(sequences)) if sequences[i][: len(read)] == read
                )
                spans.append((row, len(context) - 1, len(read) - 1))
                targets.extend(continuation)
        return {
            "input_ids": pad(sequences, self._pad_id)["input_ids"],
            "spans": torch.tensor(spans),
            "targets": torch.tensor(targets),
            "questions": list(indices),
        }

    def step(self, pair: Pair, batch: dict[str, Any]) -> dict[str, Tensor]:
        questions = [self._questions[index] for index in batch["questions"]]
        counts = [len(question.choices) for question in questions]
        widest = max(len(question.choices) for question in self._questions)
        label = torch.tensor([question.label for question in questions])
        values: dict[str, Tensor] = {}
        for name, model in pair.models().items():
            scores = continuation_scores(
                model,
                batch["input_ids"],
                batch["spans"],
                batch["targets"],
            ).cpu()
            table = torch.full((len(questions), widest), -torch.inf, dtype=torch.float64)
            size = torch.ones_like(table)
            for row, (question, own) in enumerate(
                zip(questions, scores.split(counts), strict=True)
            ):
                table[row, : len(own)] = own
                bytes_ = [len(choice.encode()) for choice in question.choices]
                size[row, : len(own)] = torch.tensor(bytes_, dtype=torch.float64)
            values[f"{name}/log_likelihood"] = table
            values[f"{name}/acc"] = (table.argmax(1) == label).double()
            values[f"{name}/acc_norm"] = ((table / size).argmax(1) == label).double()
        return values

    def summarise(self, table: ItemTable) -> list[Row]:
        details = {
            "path": self.path,
            "split": self.split,
            "rows_sha256": hash_rows([vars(question) for question in self._questions]),
            "template": self.template,
            "delimiter": self.delimiter,
            "chance": sum(1 / len(q.choices) for q in self._questions) / len(self._questions),
        }
        return table.paired_rows(self.name, ["acc", "acc_norm"], details)


def split_tokens(
    tokenizer: PreTrainedTokenizerBase, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Tokens of context and continuation, cut where the context's own tokens end.

    Args:
        tokenizer: of the model.
        context: not empty.
        continuation: usually begins with a space.
    """
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole = encode(tokenizer, context + continuation)
    cut = len(encode(tokenizer, context))
    return whole[:cut], whole[cut:]
