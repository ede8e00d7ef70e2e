"""Compare both models on the answer options of a question and on the full vocabulary."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunelit.data.rows import hash_rows
from prunelit.data.tokens import (
    decode,
    encode_text,
    name_tokens,
    pad,
    pad_token,
    special_tokens,
)
from prunelit.errors import InputError, check_positive
from prunelit.metrics.spaces.subspace import SUBSPACE, score_options, subspace_deviations
from prunelit.metrics.validity import NEAR, measure_quantity_validity
from prunelit.models.architecture import last_hidden
from prunelit.models.comparison import token_deviations
from prunelit.models.model_pair import ModelPair
from prunelit.report.curves import Picture
from prunelit.report.quantities import LEADING
from prunelit.report.results import Result
from prunelit.report.scatter import scatter_picture
from prunelit.report.subspace import (
    Shown,
    item_lines,
    item_picture,
    options_picture,
    spaces_picture,
)
from prunelit.report.task_report import TaskReport
from prunelit.tasks.formats.base import read_questions
from prunelit.tasks.item_table import ItemTable, mean
from prunelit.tasks.labels import Labels
from prunelit.tasks.prompting.text_template import check_template
from prunelit.tasks.questions import Question
from prunelit.tasks.retention import score_details
from prunelit.tasks.row_task import RowTask

Options = Literal["letters", "continuations"]

# Default templates. {choices} becomes a line "A. <choice>" for each choice.
TEMPLATES: dict[Options, str] = {
    "continuations": "Question: {context}\nAnswer:",
    "letters": "Question: {context}\n{choices}\nAnswer:",
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
QUANTITIES = ("embedding_cosine", "embedding_cosine_estimate", *SUBSPACE)  # of the full vocabulary
_COMPARED = (*QUANTITIES, *(f"subspace_{name}" for name in SUBSPACE))
_JUDGED = tuple(name for name in LEADING if name in SUBSPACE)
_SCORES = ("acc", "option_mass", "log_likelihood_right", "log_likelihood_wrong")


@dataclass
class Item:
    """A question whose options have different tokens."""

    number: int  # of its row
    question: Question
    context: list[int]  # token ids that both models read
    options: list[int]  # distinct token ids, one per option


class Subspace(RowTask):
    """The answer options of multiple choice, dense against pruned, beside the full vocabulary.

    Each model reads the prompt of a question once. The models are compared after its last token, on
    the full vocabulary and on the options alone (prefix `subspace_`): logits of the option tokens,
    and probabilities renormalised over them. Both use the same embedding h, so there is one
    embedding cosine. `subspace_top1_agreement` is the share of questions where both models choose
    the same option. Each model has `acc`, `option_mass` and the log-likelihoods of
    `metrics/spaces/subspace.py`. Standard errors are over questions.

    One token represents an option. Prompt and option are tokenised together, joined by a space
    unless the prompt ends in white space. First tokens that all options of a row share become part
    of the prompt. The next token is the token of the option:

    * A space that belongs to a word is in the token (" Paris").
    * A space that is a token of its own (before a digit, in many vocabularies) is in the prompt.
    * If an option has several tokens, the first one is used.

    If two options of a row have the same token, the row has no well-defined subspace. `collisions`
    is the share of these rows; all other metrics leave them out.

    Args:
        path: rows `{id, context, choices, label}`, see `prunelit.data.load_rows`.
        options: `continuations` answers with the choice itself; `letters` lists the choices in the
            prompt and answers with A, B, ...
        template: template of the prompt, with the field `{context}` and, for letters, `{choices}`:
            one line "A. <choice>" per choice. None is the one in `TEMPLATES`: the line
            "Question: {context}", for letters the lines of the choices, then the line "Answer:".
        top_k: number of top tokens that are shown of each model.
        show: rows to show as figures and texts: a list of row numbers from 0, or the number of
            rows, taken from the start.
        temperature: of the softmax.
        batch_size: number of questions per batch.
        name: of the task.
        kwargs: options of `RowTask`.

    Example:
        >>> from prunelit.tasks import Subspace
        >>> task = Subspace("prunelit:facts.jsonl", limit=48)
        >>> task.name, task.needs_reference
        ('subspace', True)
    """

    needs_reference = True
    needs_equal = ("vocab_size", "hidden_size")

    def __init__(
        self,
        path: str,
        options: Options = "continuations",
        template: str | None = None,
        top_k: int = 10,
        show: int | list[int] = 4,
        temperature: float = 1.0,
        batch_size: int = 16,
        name: str = "subspace",
        **kwargs: Any,
    ) -> None:
        super().__init__(path=path, batch_size=batch_size, name=name, **kwargs)
        if options not in get_args(Options):
            raise InputError(f"Expected `options` in {get_args(Options)} but got {options!r}.")
        if top_k < 1:
            raise InputError(f"Expected `top_k` of at least 1 but got {top_k}.")
        if any(number < 0 for number in ([show] if isinstance(show, int) else show)):
            raise InputError(f"Expected no negative number in `show` but got {show}.")
        check_positive("temperature", temperature)
        self.options: Options = options
        self.template = TEMPLATES[options] if template is None else template
        self.top_k = top_k
        self.show = show
        self.temperature = temperature

    def read(self) -> None:
        letters = self.options == "letters"
        check_template(self.template, "context", *(["choices"] if letters else []))
        self._questions = read_questions(self.pinned, self.split, self.limit)
        most = max(len(question.choices) for question in self._questions)
        if letters and most > len(LETTERS):
            raise InputError(
                f"Expected at most {len(LETTERS)} choices per row but a row of {self.path!r} has "
                f"{most}: use `options: continuations`."
            )
        size = len(self._questions)
        if not isinstance(self.show, int) and max(self.show, default=0) >= size:
            raise InputError(f"Expected row numbers below {size} in `show` but got {self.show}.")

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> int:
        self._tokenizer = tokenizer
        self._items: list[Item] = []
        self._collisions: list[int] = []
        self._read_on = self._merged = 0
        for number, question in enumerate(self._questions):
            self._add(number, question)
        if not self._items:
            raise InputError(
                f"Expected options with different first tokens but in every row of {self.path!r} "
                "two options have the same one: use `options: letters`."
            )
        numbers = [item.number for item in self._items]
        wanted = numbers[: self.show] if isinstance(self.show, int) else self.show
        if lost := sorted(set(wanted) - set(numbers)):
            raise InputError(
                f"Expected rows in `show` whose options have different first tokens but got "
                f"{lost}, where two options have the same one: show other rows."
            )
        self._shown = [numbers.index(number) for number in wanted]
        self.note_longest(
            (len(item.context) for item in self._items),
            lambda item: self.name_row(numbers[item], self._questions[numbers[item]].id),
        )
        self._widest = max(len(item.options) for item in self._items)
        labels = Labels([item.question for item in self._items])
        guesses = [1 / len(item.options) for item in self._items]
        self._chance = (
            labels.constant_scores().mean().item() if labels else sum(guesses) / len(guesses)
        )
        return len(self._items)

    def _add(self, number: int, question: Question) -> None:
        """Tokenise one row, and count collisions, shared tokens and merged tokens."""
        letters = LETTERS[: len(question.choices)]
        lines = "\n".join(
            f"{a}. {choice}" for a, choice in zip(letters, question.choices, strict=False)
        )
        prompt = self.template.format(context=question.context, choices=lines)
        answers = list(letters) if self.options == "letters" else question.choices
        gap = "" if prompt[-1:].isspace() else " "
        own = encode_text(self._tokenizer, prompt)
        wholes = [encode_text(self._tokenizer, prompt + gap + answer) for answer in answers]
        common = len(list(takewhile(lambda ids: len(set(ids)) == 1, zip(*wholes, strict=False))))
        if common <= len(special_tokens(self._tokenizer).before):
            raise InputError(
                "Expected a prompt with the same tokens before every answer but in "
                f"{self.name_row(number, question.id)} the first token differs: use another "
                "`template`."
            )
        tokens = {tuple(whole[common : common + 1]) for whole in wholes}
        if len(tokens) < len(wholes) or () in tokens:
            self._collisions.append(number)
            return
        self._read_on += common > len(own)
        self._merged += wholes[0][: len(own)] != own or common < len(own)
        options = [whole[common] for whole in wholes]
        self._items.append(Item(number, question, wholes[0][:common], options))

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        prompts = [self._items[index].context for index in indices]
        return {**pad(prompts, pad_token(self._tokenizer), left=True), "items": list(indices)}

    def step(self, pair: ModelPair, batch: dict[str, Any]) -> dict[str, Tensor]:
        assert pair.dense is not None
        ids, mask = batch["input_ids"], batch["attention_mask"]
        items = [self._items[index] for index in batch["items"]]
        hidden = [pair.ask(name, last_hidden, ids, mask) for name in pair.models()]

        def also(z: Tensor, z_pruned: Tensor, place: slice) -> dict[str, Tensor]:
            options = [item.options for item in items[place]]
            labels = [item.question.label for item in items[place]]
            inside = subspace_deviations(z, z_pruned, options, temperature=self.temperature)
            values = {f"subspace_{name}": value for name, value in inside.items()}
            for model, logits in (("dense", z), ("pruned", z_pruned)):
                read = score_options(
                    logits,
                    options,
                    labels,
                    width=self._widest,
                    top_k=self.top_k,
                    temperature=self.temperature,
                )
                values |= {f"{model}/{name}": value for name, value in read.items()}
            return values

        found = token_deviations(
            pair.dense, pair.pruned, *hidden, temperature=self.temperature, also=also
        )
        return {name: x for name, x in found.items() if name in _COMPARED or "/" in name}

    def report(self, table: ItemTable) -> TaskReport:
        return TaskReport(
            self._results(table), pictures=self._pictures(table), texts=self._text_rows(table)
        )

    def _results(self, table: ItemTable) -> list[Result]:
        details = {
            **self.source_details(),
            "rows_sha256": hash_rows([vars(question) for question in self._questions]),
            "options": self.options,
            "template": self.template,
            "bos": name_tokens(self._tokenizer, special_tokens(self._tokenizer).before),
            "option_token": "first that differs, prompt and option tokenised together",
            "temperature": self.temperature,
            **score_details("multiple choice", "acc"),
            "chance": self._chance,
            "rows": len(self._questions),
            "rows_with_collisions": len(self._collisions),
            "rows_with_tokens_shared_by_all_options": self._read_on,
            "rows_where_prompt_and_option_merge": self._merged,
        }
        results = table.paired_results(self.name, _SCORES, details)
        results += table.pair_results(self.name, _COMPARED, details)
        lost = torch.zeros(len(self._questions))
        lost[self._collisions] = 1
        return [*results, Result(self.name, "collisions", "pair", *mean(lost), len(lost), details)]

    def _text_rows(self, table: ItemTable) -> Iterator[dict[str, str]]:
        """Yield the shown rows: prompt, options, both answers and the top tokens of both models."""
        return map(item_lines, self._show(table))

    def _pictures(self, table: ItemTable) -> Iterator[tuple[str, Picture]]:
        means = {name: mean(table[name]) for name in _COMPARED}
        scores = {
            f"{model}/{name}": mean(table[f"{model}/{name}"])
            for model in table.models("acc")
            for name in _SCORES
        }
        yield "subspace_spaces", spaces_picture(means, table.size)
        yield "subspace_options", options_picture(scores, self._chance, table.size)
        inside = {name: table[f"subspace_{name}"].numpy() for name in SUBSPACE}
        judged = {
            name: measure_quantity_validity(
                name, inside["logit_std_p"], inside[name], inside[f"{name}_estimate"]
            )
            for name in _JUDGED
        }
        title = f"Second-order estimates on the options, one dot a question (n = {table.size})"
        yield "subspace_theory", scatter_picture(judged, NEAR, title)
        for shown in self._show(table):
            yield f"subspace_item_{shown.number}", item_picture(shown)

    def _show(self, table: ItemTable) -> Iterator[Shown]:
        models = table.models("option_log_likelihood")
        for place in self._shown:
            item = self._items[place]
            scores = {m: table[f"{m}/option_log_likelihood"][place].tolist() for m in models}
            yield Shown(
                item.number,
                self._text(item.context),
                item.question.choices,
                [self._text([option]) for option in item.options],
                item.question.label,
                {model: scores[model][: len(item.options)] for model in models},
                {model: self._top(table, model, place) for model in models},
            )

    def _top(self, table: ItemTable, model: str, place: int) -> list[tuple[str, float, bool]]:
        ids, shares = (table[f"{model}/top_{what}"][place] for what in ("id", "probability"))
        options = self._items[place].options
        return [
            (self._text([token]), share, token in options)
            for token, share in zip(ids.tolist(), shares.tolist(), strict=True)
        ]

    def _text(self, tokens: list[int]) -> str:
        return decode(self._tokenizer, tokens, special=True)
