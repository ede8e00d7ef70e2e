"""Multiple choice by log-likelihood of the choices."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunelit.data.rows import hash_rows
from prunelit.data.tokens import name_tokens, pad_token, special_tokens
from prunelit.errors import InputError
from prunelit.metrics.calibration_error import brier_scores, calibration_errors, calibration_noise
from prunelit.models.inference.prefix_cache import SharedPrefix
from prunelit.models.inference.token_tree import TokenTree
from prunelit.models.inference.tree_scoring import tree_scores
from prunelit.models.model_pair import ModelPair
from prunelit.report.results import Result
from prunelit.report.task_report import TaskReport
from prunelit.tasks.flips import flip_results
from prunelit.tasks.item_table import ItemTable
from prunelit.tasks.labels import Labels
from prunelit.tasks.prompting.choices import Prompt, Scoring
from prunelit.tasks.prompting.few_shot import FewShot
from prunelit.tasks.prompting.plans import build_plan
from prunelit.tasks.question_task import QuestionTask
from prunelit.tasks.questions import Question, get_group
from prunelit.tasks.retention import paired_scores, retained_results, score_details

Primary = Literal[
    "acc",
    "acc_norm",
    "acc_token_norm",
    "acc_pmi",
    "balanced_acc",
    "balanced_acc_norm",
    "balanced_acc_token_norm",
    "balanced_acc_pmi",
]
_BALANCED = "balanced_"


class MultipleChoice(QuestionTask):
    """Choose the answer with the highest log-likelihood.

    Accuracies of a model; each chooses the answer by another score:

    * `acc`: the summed log-likelihood of the choice;
    * `acc_norm`: the log-likelihood per UTF-8 byte of the choice;
    * `acc_token_norm`: the log-likelihood per token;
    * `acc_pmi`: the log-likelihood minus that after the text `unconditional` in place of the prompt
      (Holtzman et al. 2021, arXiv:2104.08315).

    The softmax of the log-likelihoods over the choices gives `brier` (from 0 to 2) and
    `calibration_error` in 15 bins. `calibration_noise` is the calibration error to expect of a
    perfectly calibrated model with the same confidences. They stand for `acc` whatever is
    `primary`, since only the log-likelihood itself gives probabilities. `score` in the details of a
    result names the accuracy that it stands for.

    Metrics of both models, by the `primary` accuracy:

    * `agreement`: the share of questions with the same answer;
    * `to_wrong` and `to_right`: the shares of questions that flip;
    * `mcnemar_p`: p-value of McNemar's exact test that both flips are equally frequent;
    * `retained`: the accuracy above chance, pruned over dense. Chance is the mean of 1 / number of
      different choices.

    If all questions have the same choices, as in a classifier, chance is the share of the most
    frequent answer. `balanced_<primary>` is then the mean accuracy over the right answers, and each
    answer has its own accuracy and the share of questions for which it is chosen. A warning says if
    a model always chooses the same answer. A choice that occurs twice in a question counts once.
    With `primary` of `balanced_acc` the verdict is on this mean: the floor is 1 / number of right
    answers, and an item weighs the more, the fewer items have its right answer.

    If questions have a group, the primary accuracy of each group is given too.

    Prompts and tokens are those of lm-evaluation-harness 0.4.13 (see `prompting/choices.py`). Only
    `acc_norm` differs: the harness divides by characters, and calls the division by bytes
    `acc_bytes`. For ASCII both are equal.

    A common prefix of questions or choices is run once. Questions are read side by side in rows
    (see `packing`), or else the KV cache of a prefix is shared. If the cache of a model cannot be
    shared either, every sequence is run on its own; a warning says so.

    Args:
        template: of the prompt, see `prunelit.tasks.prompting.choices.Prompt`.
        delimiter: between prompt and choice.
        scoring: `continuation`, `letter` or `partial`, see `Prompt`.
        description: text before everything else.
        few_shot: solved examples before every question; None is no example.
        unconditional: text in place of the prompt for `acc_pmi`; the empty string is the BOS token.
            None leaves `acc_pmi` out.
        primary: accuracy that the models are compared by; `balanced_` before its name needs equal
            choices of all questions.
        tokens: maximum number of tokens per forward pass. A single question may have more.
        packing: read whole questions side by side in rows. Otherwise, or if a model cannot read
            rows or has a sliding window shorter than a row, contexts and choices are read one after
            the other, with more padding. Log-likelihoods differ by rounding only.
        kwargs: options of `QuestionTask`.

    Example:
        >>> from prunelit.tasks import MultipleChoice
        >>> task = MultipleChoice("prunelit:facts.jsonl", template="Q: {context} A:", limit=1)
        >>> task.read()
        >>> task.prompts(0)[:2]
        [('Q: What is the organ that covers the whole body? A:', ' skin'), \
('Q: What is the organ that covers the whole body? A:', ' chest')]
    """

    use = "multiple choice"
    own_tokenizers = True

    def __init__(
        self,
        path: str,
        template: str = "Question: {context}\nAnswer:",
        delimiter: str = " ",
        batch_size: int = 64,
        name: str = "multiple_choice",
        scoring: Scoring = "continuation",
        description: str = "",
        few_shot: FewShot | None = None,
        unconditional: str | None = None,
        primary: Primary = "acc",
        tokens: int = 4096,
        packing: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(path=path, batch_size=batch_size, name=name, **kwargs)
        if tokens < 1:
            raise InputError(f"Expected `tokens` of at least 1 but got {tokens}.")
        self.template = template
        self.delimiter = delimiter
        self.scoring: Scoring = scoring
        self.description = description
        self.few_shot = few_shot
        self.unconditional = unconditional
        self.primary = primary
        self.tokens = tokens
        self.packing = packing

    def read(self) -> None:
        self._prompt = Prompt(self.template, self.delimiter, self.scoring, self.description)
        if self.unconditional is not None and self.scoring == "partial":
            raise InputError(
                "Expected no `unconditional` with `scoring: partial`: its continuation is the same "
                "for all choices, and so would be its log-likelihood."
            )
        self._accuracy = self.primary.removeprefix(_BALANCED)
        if self._accuracy not in (known := self._accuracies()):
            raise InputError(f"Expected `primary` to be one of {known} but got {self.primary!r}.")
        self._questions = self.read_questions()
        self._labels = Labels(self._questions)
        if self._balanced and not self._labels:
            raise InputError(
                f"Expected questions with equal choices in {self.path!r} for the `primary` "
                f"{self.primary!r}: give {self._accuracy!r}."
            )
        self._texts = [self._prompt.texts(question) for question in self._questions]
        self._preambles = [self._prompt.preamble(question) for question in self._questions]
        if self.few_shot is not None:
            pool = self.read_pool(self.few_shot)
            self._examples = self.few_shot.choose(pool, self._questions, _key)
            self._preambles = list(map(self._prompt.preamble, self._questions, self._examples))

    def prompts(self, index: int) -> list[tuple[str, str]]:
        """Return for each choice of a question the whole prompt and the text that is scored."""
        return [(self._preambles[index] + prompt, rest) for prompt, rest in self._texts[index]]

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> int:
        pad_id = pad_token(tokenizer)
        self._start = name_tokens(tokenizer, special_tokens(tokenizer).before)
        names = [question.id for question in self._questions]
        self._plan = build_plan(tokenizer, pad_id, names, self._preambles, self._texts)
        lengths = self._plan.lengths
        if self.unconditional is not None:
            free = [[("", rest) for _, rest in own] for own in self._texts]
            before = [self.unconditional] * len(free)
            self._free = build_plan(tokenizer, pad_id, names, before, free)
            lengths = list(map(max, lengths, self._free.lengths))
        self.note_longest(lengths, lambda row: self.name_row(row, names[row]))
        # Divisors of the accuracies, 1 at choices that a question does not have.
        shape = (len(names), max(len(question.choices) for question in self._questions))
        # A text that occurs twice is one choice, so that any copy may be the label.
        self._label = torch.tensor([q.choices.index(q.answer) for q in self._questions])
        self._bytes = torch.ones(shape, dtype=torch.float64)
        self._tokens = torch.ones(shape, dtype=torch.float64)
        for row, question in enumerate(self._questions):
            for column, choice in enumerate(question.choices):
                self._bytes[row, column] = len(choice.encode())
                self._tokens[row, column] = len(self._plan.branches[row].targets[column])
        return len(names)

    def chunks(self, size: int) -> list[list[int]]:
        return self._plan.chunks(self.batch_size, self.tokens)

    def common(self) -> dict[str, Any]:
        return {"shared_prefix": SharedPrefix()}

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        options = indices, self.tokens, self.packing
        batch = {"tree": self._plan.tree(*options), "questions": list(indices)}
        if self.unconditional is not None:
            batch["free"] = self._free.tree(*options)
        return batch

    def step(self, pair: ModelPair, batch: dict[str, Any]) -> dict[str, Tensor]:
        indices = batch["questions"]
        values: dict[str, Tensor] = {}
        for name in pair.models():
            columns = {"log_likelihood": self._scores(pair, name, batch["tree"], batch)}
            if "free" in batch:
                columns["unconditional"] = self._scores(pair, name, batch["free"], batch)
            label = self._label[indices]
            for metric, chosen in self._choose(columns, indices).items():
                columns[metric] = (chosen == label).double()
            columns["brier"] = brier_scores(columns["log_likelihood"], label)
            values |= {f"{name}/{column}": value for column, value in columns.items()}
        return values

    def report(self, table: ItemTable) -> TaskReport:
        details = self._details()
        every = range(table.size)
        values: dict[str, Tensor] = {}
        chosen: dict[str, Tensor] = {}
        metrics = [*self._accuracies(), "brier"]
        for name in table.models("log_likelihood"):
            stored = [c for c in ("log_likelihood", "unconditional") if f"{name}/{c}" in table]
            columns = {column: table[f"{name}/{column}"] for column in stored}
            # Tokens a choice are those of the model's own tokenizer.
            chosen[name] = self.reader(name)._choose(columns, every)[self._accuracy]
            values |= {f"{name}/{metric}": table[f"{name}/{metric}"] for metric in metrics}
        derived = ItemTable(table.size)
        derived.assign(torch.arange(table.size), values)
        results = derived.paired_results(self.name, self._accuracies(), details)
        raw, own = {**details, "score": "acc"}, {**details, "score": self._accuracy}
        results += derived.paired_results(self.name, ["brier"], raw)
        results += self._calibration_results(table, raw)
        results += flip_results(self.name, chosen, self._label, own)
        answers = self._labels.kind if self._labels and not self._balanced else None
        weights = self._labels.weights() if self._balanced else None
        scores = paired_scores(values, self._accuracy, self._chance(), weights)
        results += retained_results(self.name, scores, details, answers)
        results += self._label_results(values, chosen, details)
        results += self._group_results(derived, details)
        return TaskReport(results, items=self._item_rows(table, chosen), scores=scores)

    def _calibration_results(self, table: ItemTable, details: dict[str, Any]) -> list[Result]:
        """Return the calibration error of both models, and that of noise alone."""
        name, size = "calibration_error", table.size
        scores = {
            model: table[f"{model}/log_likelihood"] for model in table.models("log_likelihood")
        }
        results = [
            Result(self.name, name, model, value, error, size, details)
            for model, (value, error) in calibration_errors(scores, self._label).items()
        ]
        own = {**details, "no_error_bar": "the expected value without miscalibration"}
        for model, column in scores.items():
            noise = calibration_noise(column)
            results.append(
                Result(self.name, "calibration_noise", model, noise, math.nan, size, own)
            )
        return results

    def _item_rows(self, table: ItemTable, chosen: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
        """Yield one row a question and model: the answer that the primary accuracy judges."""
        for index, question in enumerate(self._questions):
            for name, indices in chosen.items():
                answer = int(indices[index])
                row: dict[str, Any] = {"item": index, "id": str(question.id), "model": name}
                row |= {"prompt": question.context, "target": question.answer}
                row["answer"] = question.choices[answer]
                row["log_likelihood"] = table[f"{name}/log_likelihood"][index, answer].item()
                for metric in self._accuracies():
                    row[f"right_{metric}"] = bool(table[f"{name}/{metric}"][index])
                yield row

    def _chance(self) -> Tensor:
        """Return the expected score of the best guess without the question, (n,)."""
        if self._balanced:
            answers = self._labels.answers
            return torch.full((len(answers),), 1 / len(set(answers)), dtype=torch.float64)
        if self._labels:
            return self._labels.constant_scores()
        sizes = [len(set(question.choices)) for question in self._questions]
        return 1 / torch.tensor(sizes, dtype=torch.float64)

    def _label_results(
        self, values: dict[str, Tensor], chosen: dict[str, Tensor], details: dict[str, Any]
    ) -> list[Result]:
        """Return the results of each answer if all questions have the same choices."""
        columns = dict(values)
        for name, indices in chosen.items():
            pairs = zip(self._questions, indices.tolist(), strict=True)
            given = [question.choices[index] for question, index in pairs]
            for text in self._labels.texts:
                column = torch.tensor([one == text for one in given], dtype=torch.float64)
                columns[f"{name}/chosen/{text}"] = column
        return self._labels.results(self.name, self._accuracy, columns, details)

    def _group_results(self, table: ItemTable, details: dict[str, Any]) -> list[Result]:
        """Return the primary accuracy of each group of questions."""
        groups: dict[str, list[int]] = {}
        for index, question in enumerate(self._questions):
            if (group := get_group(question)) is not None:
                groups.setdefault(group, []).append(index)
        results = []
        for group, indices in groups.items():
            part = ItemTable(len(indices))
            metric = f"{self._accuracy}/{group}"
            own = {
                f"{name}/{metric}": table[f"{name}/{self._accuracy}"][indices]
                for name in table.models(self._accuracy)
            }
            part.assign(torch.arange(len(indices)), own)
            own_details = {**details, "score": self._accuracy, "group": group}
            results += part.paired_results(self.name, [metric], own_details)
        return results

    @property
    def _balanced(self) -> bool:
        return self.primary.startswith(_BALANCED)

    def _accuracies(self) -> list[str]:
        """Return the accuracies that can differ from `acc`.

        Letters, and the rest of a sentence, are equally long: dividing by length changes nothing.
        """
        longer = ["acc_norm", "acc_token_norm"] if self.scoring == "continuation" else []
        return ["acc", *longer, *([] if self.unconditional is None else ["acc_pmi"])]

    def _choose(self, columns: dict[str, Tensor], indices: Sequence[int]) -> dict[str, Tensor]:
        """Return for each accuracy the index of the choice, (B,)."""
        scores, rows = columns["log_likelihood"], torch.tensor(indices)
        normed = {
            "acc": scores,
            "acc_norm": scores / self._bytes[rows],
            "acc_token_norm": scores / self._tokens[rows],
        }
        if "unconditional" in columns:
            gain = scores - columns["unconditional"]
            normed["acc_pmi"] = gain.masked_fill(scores == -torch.inf, -torch.inf)
        return {metric: normed[metric].argmax(1) for metric in self._accuracies()}

    def _scores(self, pair: ModelPair, name: str, tree: TokenTree, batch: dict[str, Any]) -> Tensor:
        """Return log-likelihoods, (B, C); minus infinity at choices that a question lacks."""
        memo = {"shared_prefix": batch.get("shared_prefix")}
        scores = pair.ask(name, tree_scores, tree, memo=memo).cpu()
        counts = [len(self._questions[index].choices) for index in batch["questions"]]
        table = torch.full((len(counts), self._bytes.shape[1]), -torch.inf, dtype=torch.float64)
        for row, own in enumerate(scores.split(counts)):
            choices = self._questions[batch["questions"][row]].choices
            for choice, score in zip(choices, own, strict=True):
                first = choices.index(choice)
                table[row, first] = torch.maximum(table[row, first], score)
        return table

    def _details(self) -> dict[str, Any]:
        questions = self._questions
        details = {
            **self.row_details(questions),
            "template": self.template,
            "delimiter": self.delimiter,
            "scoring": self.scoring,
            "bos": self._start,
            **score_details(self.use, self.primary),
            "chance": self._chance().mean().item(),
        }
        if self.few_shot is not None:
            details |= self.few_shot.details(self._examples)
        if self.unconditional is not None:
            details["unconditional"] = self.unconditional
        if self.few_shot is not None or self.description:
            details["before_sha256"] = hash_rows(self._preambles)
        return details


def _key(question: Question) -> tuple[str, frozenset[str]]:
    return question.context, frozenset(question.choices)
