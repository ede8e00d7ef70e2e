"""Generation: let the models answer the prompts of a data set, and judge the answers."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunelit.data.rows import hash_rows
from prunelit.data.tokens import decode
from prunelit.errors import InputError, check_seed
from prunelit.metrics.first_divergence import find_first_divergence
from prunelit.metrics.pass_at_k import estimate_pass_at_k
from prunelit.metrics.repetition import ROLLOUT_MEASURES, rollout_measures
from prunelit.models.inference.generation import Sampling, rollout
from prunelit.models.inference.prefix_cache import SharedPrefix, shared_prefix_length
from prunelit.models.inference.stop_strings import cut_at_stop
from prunelit.models.model_pair import ModelPair
from prunelit.recipe import describe
from prunelit.report.results import Result
from prunelit.report.score_test import PairedScores
from prunelit.report.task_report import TaskReport
from prunelit.tasks.formats.base import read_examples
from prunelit.tasks.item_table import ItemTable
from prunelit.tasks.judges.judge import ExactMatch, Judge
from prunelit.tasks.labels import Labels
from prunelit.tasks.prompt_task import PromptTask
from prunelit.tasks.prompting.few_shot import FewShot
from prunelit.tasks.prompting.text_template import check_template
from prunelit.tasks.question_task import QuestionTask
from prunelit.tasks.questions import Example, Question
from prunelit.tasks.retention import paired_scores, retained_results, score_details

_SHOWN = 100  # prompts in the text table


class Generation(QuestionTask, PromptTask):
    """Generate rollouts of both models for every prompt, and judge them.

    Metrics of a model, averaged over the samples of a prompt and then over prompts:

    * the metrics of the judge, and `pass@k` of its first metric;
    * `repetition`: the share of 4-grams of tokens that repeat an earlier one;
    * `distinct_1` and `distinct_2`: the share of different 1-grams and 2-grams;
    * `end_of_text`: 1 if the text ended within `max_new_tokens`, by itself or at a stop string;
    * `length` in tokens.

    Metrics of both models:

    * `first_divergence`: the step (from 0) of the first token that differs; the whole length if
      none does;
    * `diverged`: the share of rollouts that differ;
    * `retained`: the judge's `primary` metric, pruned over dense, both above chance. Chance is 0
      for open answers, and for fixed answers the share of the most frequent one.

    Answers are fixed if all questions have the same choices, or if there are few different targets,
    see `prunelit.tasks.labels.Labels`. `balanced_<primary>` is then the mean over the right
    answers. Each answer has its own score and the share of texts that give it; a text that gives
    several answers counts for each. A warning says if a model always gives the same answer.

    In sampling every prompt has its own noise. Both models use the same noise, and it depends on
    neither batch nor rank.

    Args:
        questions: the rows are multiple-choice questions, whose right choice is the target. This
            is also assumed if both `format` and `columns` are None. Otherwise a row is an
            `Example`, see `prunelit.tasks.formats.base.read_examples`.
        judge: decides if a text is right. None is `ExactMatch(contains=True)`.
        few_shot: solved examples before the question; None is no example.
        delimiter: between the question and the answer of an example, if `chat` is false.
        stop: strings that end a text; the text is cut before them.
        samples: number of rollouts per prompt; more than one needs a temperature.
        temperature: of sampling; 0 decodes greedily.
        seed: of sampling.
        pass_at: every k of `pass@k`, at most `samples`.
        kwargs: options of `QuestionTask` and `PromptTask`, without `column`.

    Example:
        >>> from prunelit.tasks import Generation
        >>> from prunelit.tasks.formats import gsm8k
        >>> from prunelit.tasks.judges import ExactMatch, last_number
        >>> judge = ExactMatch({"exact_match": last_number})
        >>> task = Generation("prunelit:gsm8k_shots.jsonl", format=gsm8k, judge=judge)
        >>> task.read()
        >>> task.contexts[1]
        'Nadia has 18 stamps. Her brother has twice as many, and her cousin has 5 fewer than her \
brother. How many stamps do the three have together?'
    """

    own_tokenizers = True

    def __init__(
        self,
        path: str,
        questions: bool = False,
        judge: Judge | None = None,
        few_shot: FewShot | None = None,
        delimiter: str = " ",
        stop: list[str] | None = None,
        samples: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        pass_at: list[int] | None = None,
        batch_size: int = 32,
        name: str = "generation",
        **kwargs: Any,
    ) -> None:
        super().__init__(path=path, column="context", batch_size=batch_size, name=name, **kwargs)
        if samples < 1 or seed < 0 or not temperature >= 0:
            raise InputError(
                "Expected `samples` of at least 1, `temperature` and `seed` of at least 0 but got "
                f"{samples}, {temperature} and {seed}."
            )
        if samples > 1 and temperature == 0:
            raise InputError(
                f"Expected a `temperature` above 0 with {samples} samples: without it all samples "
                "of a prompt are equal."
            )
        if not all(1 <= k <= samples for k in pass_at or []):
            raise InputError(f"Expected every `pass_at` in [1, {samples}] but got {pass_at}.")
        if not all(stop or []):
            raise InputError(f"Expected `stop` to hold non-empty strings but got {stop}.")
        self.questions = questions
        self.judge = judge or ExactMatch(contains=True)
        self.use = None if self.judge.primary is None else "generation"
        self.few_shot = few_shot
        self.delimiter = delimiter
        self.samples = samples
        self.temperature = temperature
        check_seed("seed", seed)
        self.seed = seed
        self.stop, self.pass_at = stop or [], pass_at or []

    def allow_code_execution(self) -> None:
        self.judge.allow()

    def read(self) -> None:
        check_template(self.template, "context")
        self.judge.check()
        self.judge.details()  # refuses a judge that cannot be saved, before any work
        rows = {"format": self.format, "columns": self.columns, "questions": self.questions}
        load = partial(read_examples, **rows)
        self._examples = load(self.pinned, self.split, self.limit, subset=self.subset)
        self._check_solutions()
        self._labels = Labels(self._examples)
        self.contexts = [example.context for example in self._examples]
        self._solved: list[list[Example | Question]] = [[] for _ in self._examples]
        if self.few_shot is not None:
            pool = load(**self.few_shot.source(self.pinned, self.subset))
            self._solved = self.few_shot.choose(pool, self._examples, attrgetter("context"))

    def _check_solutions(self) -> None:
        """Refuse a row on which no answer would be right, not even its own solution."""
        for number, example in enumerate(self._examples):
            fault = self.judge.find_fault(example)
            if fault:
                raise self.refuse_row(number, fault)

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> int:
        size = super().prepare(tokenizer)
        self._prompts = [decode(tokenizer, tokens) for tokens in self._tokens]
        self._prefix = self._tokens[0][: shared_prefix_length(self._tokens)]
        return size

    def name_item(self, index: int) -> str:
        return self.name_row(index, getattr(self._examples[index], "id", None))

    def chunks(self, size: int) -> list[list[int]]:
        return self.longest_first([len(prompt) for prompt in self._tokens])

    def common(self) -> dict[str, Any]:
        return {"shared_prefix": SharedPrefix()}

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        repeated = [index for index in indices for _ in range(self.samples)]
        return {**super().collate(repeated), "prompts": list(indices)}

    def step(self, pair: ModelPair, batch: dict[str, Any]) -> dict[str, Tensor]:
        indices: list[int] = batch["prompts"]
        values: dict[str, Tensor] = {}
        for name in pair.models():
            rolled = pair.ask(
                name,
                rollout,
                pair.tokenizer,
                batch["input_ids"],
                batch["attention_mask"],
                max_new_tokens=self.max_new_tokens,
                sampling=self._sampling(indices),
                stop_strings=self.stop,
                prefix=self._prefix,
                memo={"shared_prefix": batch["shared_prefix"]},
            )
            tokens = rolled.tokens.cpu()
            columns: dict[str, list[float]] = {}
            for number, (row, ended) in enumerate(zip(tokens, rolled.ended.tolist(), strict=True)):
                index = indices[number // self.samples]
                text = self.rollout_text(index, row)
                judged: dict[str, float] = {**self.judge.right(self._examples[index], text)}
                if self.judge.doubts:  # 0 for none
                    places = (n for n, one in enumerate(self.judge.doubts, 1) if judged.pop(one, 0))
                    judged["doubt"] = next(places, 0)
                for metric, value in {
                    **judged,
                    **self._given(self._examples[index], text),
                    **rollout_measures(row[row >= 0].tolist(), ended),
                }.items():
                    columns.setdefault(metric, []).append(float(value))
            values[f"{name}/tokens"] = tokens
            for metric, column in columns.items():
                values[f"{name}/{metric}"] = torch.tensor(column, dtype=torch.float64)
        if pair.dense is not None:
            first, diverged = find_first_divergence(values["dense/tokens"], values["pruned/tokens"])
            values |= {"first_divergence": first, "diverged": diverged}
        # Tokens become (B, samples, max_new_tokens), every other column (B, samples).
        return {
            key: value.view(len(indices), self.samples, *value.shape[1:])
            for key, value in values.items()
        }

    def report(self, table: ItemTable) -> TaskReport:
        results, scores = self._results(table)
        return TaskReport(
            results,
            texts=self._text_rows(table),
            items=self._item_rows(table),
            scores=scores,
        )

    def _results(self, table: ItemTable) -> tuple[list[Result], PairedScores | None]:
        means = ItemTable(table.size)
        columns = {
            name: table[name].mean(1) for name in table.columns() if not name.endswith("/tokens")
        }
        judged = self.judge.metrics
        passes = self.pass_at if judged else []
        for name in table.models("tokens") if passes else []:
            right = table[f"{name}/{judged[0]}"].sum(1).int().tolist()
            for k in passes:
                values = [estimate_pass_at_k(self.samples, count, k) for count in right]
                columns[f"{name}/pass@{k}"] = torch.tensor(values, dtype=torch.float64)
        metrics = [*judged, *(f"pass@{k}" for k in passes), *ROLLOUT_MEASURES]
        means.assign(torch.arange(table.size), columns)
        details = self.details()
        results = [
            self._count_doubts(table, result)
            for result in means.paired_results(self.name, metrics, details)
        ]
        scores = paired_scores(columns, self.judge.primary, self._labels.constant_scores())
        results += retained_results(self.name, scores, details, self._labels.kind)
        if self.judge.primary is not None:
            results += self._labels.results(self.name, self.judge.primary, columns, details)
        results += means.pair_results(self.name, ["first_divergence", "diverged"], details)
        return results, scores

    def _count_doubts(self, table: ItemTable, result: Result) -> Result:
        """Add to the details how many of a model's texts are judged wrong but may be right."""
        column = f"{result.model}/doubt"
        own = result.metric in self.judge.metrics or result.metric.startswith("pass@")
        if not own or column not in table:
            return result
        count = int((table[column] > 0).sum())
        return replace(result, details={**result.details, "doubts": count})

    def _given(self, example: Example | Question, text: str) -> dict[str, bool]:
        """Return for each fixed answer if the text gives it."""
        primary = self.judge.primary
        if primary is None:
            return {}
        given = {}
        for label in self._labels.texts:
            if isinstance(example, Question):
                other = replace(example, label=example.choices.index(label))
            else:
                other = replace(example, target=label, solution=label)
            given[f"chosen/{label}"] = self.judge.right(other, text)[primary]
        return given

    def _text_rows(self, table: ItemTable) -> Iterator[dict[str, str]]:
        """Yield prompt, target and the texts of both models for the first prompts."""
        for index, example in enumerate(self._examples[:_SHOWN]):
            row = {"prompt": example.context, "target": example.target}
            for name in table.models("tokens"):
                row[name] = self._text_of(name, index, table[f"{name}/tokens"][index, 0])
            yield row

    def _item_rows(self, table: ItemTable) -> Iterator[dict[str, Any]]:
        """Yield one row per prompt, sample and model, with everything known of the rollout."""
        names = table.models("tokens")
        for index, example in enumerate(self._examples):
            for sample in range(self.samples):
                for name in names:
                    text = self._text_of(name, index, table[f"{name}/tokens"][index, sample])
                    values = {
                        metric: table[f"{name}/{metric}"][index, sample].item()
                        for metric in (*self.judge.metrics, *ROLLOUT_MEASURES)
                    }
                    row = {
                        "item": index,
                        "sample": sample,
                        "model": name,
                        "prompt": self._prompts[index],
                        "target": example.target,
                        "output": text,
                    }
                    row |= {f"extracted_{k}": v for k, v in self.judge.answers(text).items()}
                    row |= {f"right_{k}": bool(values.pop(k)) for k in self.judge.metrics}
                    if self.judge.doubts:
                        place = int(table[f"{name}/doubt"][index, sample])
                        row["doubt"] = [None, *self.judge.doubts][place]
                    row |= values
                    row |= {"end_of_text": bool(row["end_of_text"]), "length": int(row["length"])}
                    if "first_divergence" in table:
                        row["first_divergence"] = int(table["first_divergence"][index, sample])
                        row["diverged"] = bool(table["diverged"][index, sample])
                    yield row

    def recipe(self) -> dict[str, Any]:
        return {
            **self.details(),
            "tokens_sha256": hash_rows(self._tokens),
            "batch_size": self.batch_size,
        }

    def details(self) -> dict[str, Any]:
        return {
            **super().details(),
            **self.row_details(self._examples),
            "format": describe(self.format),
            "columns": self.columns,
            "questions": self.questions,
            **self.judge.details(),
            **score_details("generation", self.judge.primary),
            "chance": self._labels.constant_scores().mean().item(),
            **({} if self.few_shot is None else self.few_shot.details(self._solved)),
            "delimiter": self.delimiter,
            "stop": self.stop,
            "samples": self.samples,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    def rollout_text(self, index: int, tokens: Tensor) -> str:
        """Decode a rollout, (S,) ids with -1 after its end, as the continuation of its prompt.

        Spaces at its start are kept.
        """
        prompt = self._prompts[index]
        # Decode the prompt too: some tokenizers drop a space at the start of a text.
        own = tokens[tokens >= 0].tolist()
        whole = decode(self._tokenizer, [*self._tokens[index], *own])
        return cut_at_stop(whole[len(prompt) :], self.stop)

    def _text_of(self, model: str, index: int, tokens: Tensor) -> str:
        """Decode a rollout of a model by the tokenizer that it has."""
        return self.reader(model).rollout_text(index, tokens)

    def _sampling(self, indices: Sequence[int]) -> Sampling | None:
        numbers = [index * self.samples + n for index in indices for n in range(self.samples)]
        return Sampling(self.seed, numbers, self.temperature) if self.temperature > 0 else None

    def _prompt(self, index: int) -> str:
        fill = self.template.format
        solved = [(fill(context=one.context), one.solution) for one in self._solved[index]]
        question = fill(context=self.contexts[index])
        if self.chat:
            return self.conversation([*(text for pair in solved for text in pair), question])
        examples = (f"{context}{self.delimiter}{solution}\n\n" for context, solution in solved)
        return "".join(examples) + question
