"""Classification of texts by a linear classifier on the model's own embeddings."""

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunelit.data.hub_rows import commit_of, pin
from prunelit.data.labelled import LabelledText, divide, find_shared, read_labelled
from prunelit.data.rows import hash_rows
from prunelit.data.sources import subset_of
from prunelit.errors import InputError, check_seed, check_whole
from prunelit.metrics.spaces.embedding import embedding_cosine
from prunelit.report.score_test import PairedScores
from prunelit.report.task_report import TaskReport
from prunelit.tasks.embedding_task import EmbeddingTask, same_width
from prunelit.tasks.flips import flip_results
from prunelit.tasks.item_table import ItemTable
from prunelit.tasks.labels import Labels
from prunelit.tasks.prompting.text_template import TextTemplate
from prunelit.tasks.questions import Question
from prunelit.tasks.retention import paired_scores, retained_results, score_details
from prunelit.tasks.row_task import RowTask

Primary = Literal["acc", "balanced_acc"]
_PRIMARIES = ("acc", "balanced_acc")


class Classification(RowTask, EmbeddingTask):
    """Tell the label of a text by logistic regression on the embeddings of the same model.

    Each model embeds all texts. A classifier of its own is fitted to its embeddings of the training
    rows. It gives every test row one label. The default template asks for one word, after PromptEOL
    (Jiang et al. 2023, arXiv:2307.16645).

    The training rows are those of `train` and `train_split`. If neither is given, the rows of
    `path` are divided at random by `seed`, each label in the same proportion.

    Metrics of a model are `acc`, `balanced_acc` (the mean accuracy over the labels), and for each
    label its own accuracy and the share of test rows that get it. Chance of `acc` is the share of
    the most frequent label among the test rows, that of `balanced_acc` is 1 over the number of
    labels. A warning says if a model always gives the same label. Metrics of both models are
    `agreement`, `flips_to_wrong`, `flips_to_right` and `mcnemar_p`, as in `MultipleChoice`, and
    `embedding_cosine`, the cosine of the dense and the pruned embedding of a test row.

    The classifier is scikit-learn's logistic regression with its default L2 penalty, as in the
    classification of MTEB (Muennighoff et al. 2023, arXiv:2210.07316). Differences: all training
    rows are used, or one draw of `samples_per_label` where MTEB averages ten draws of 8; the
    embeddings are standardised, since a few of their dimensions are far larger than others. With
    `samples_per_label=8, standardise=False` a single draw of MTEB is left.

    Args:
        subset: configuration of a data set on the hub.
        text: column of the text.
        label: column of the label, a text or a whole number.
        train: data set or file of the training rows; None is `path`.
        train_split: split of the training rows; None is `train` if `train` is given.
        test_share: share of the rows of `path` that are tested, where these are divided.
        samples_per_label: highest number of training rows of a label, drawn by `seed`; None uses
            all.
        standardise: give each dimension of the embeddings mean 0 and variance 1, as measured on the
            training rows.
        max_iter: highest number of steps of the fit (L-BFGS).
        seed: of the division and the draw.
        primary: accuracy that the models are compared by. With `balanced_acc` a test row counts by
            1 / frequency of its label.
        template: with the field `{text}`.
        kwargs: options of `RowTask` and `EmbeddingTask`. `limit` counts rows of `path`.

    Example:
        >>> from prunelit.tasks import Classification
        >>> task = Classification("intents.csv", text="message", label="intent", pooling="mean")
        >>> task.name, task.test_share
        ('classification', 0.5)
    """

    use = "classification"

    def __init__(
        self,
        path: str,
        subset: str | None = None,
        text: str = "text",
        label: str = "label",
        train: str | None = None,
        train_split: str | None = None,
        test_share: float = 0.5,
        samples_per_label: int | None = None,
        standardise: bool = True,
        max_iter: int = 100,
        seed: int = 0,
        primary: Primary = "acc",
        template: str = 'This sentence: "{text}" means in one word: "',
        length: int | None = 128,
        batch_size: int = 32,
        name: str = "classification",
        **kwargs: Any,
    ) -> None:
        super().__init__(path=path, length=length, batch_size=batch_size, name=name, **kwargs)
        if primary not in _PRIMARIES:
            raise InputError(f"Expected `primary` as one of {_PRIMARIES} but got {primary!r}.")
        if not 0 < test_share < 1:
            raise InputError(f"Expected `test_share` between 0 and 1 but got {test_share}.")
        if samples_per_label is not None:
            check_whole("samples_per_label", samples_per_label, 1)
        check_whole("max_iter", max_iter, 1)
        check_seed("seed", seed)
        self.subset = subset
        self.text = text
        self.label = label
        self.train = train
        self.train_split = train_split
        self.test_share = test_share
        self.samples_per_label = samples_per_label
        self.standardise = standardise
        self.max_iter = max_iter
        self.seed = seed
        self.primary: Primary = primary
        self.template = template

    def read(self) -> None:
        self._template = TextTemplate(self.template)
        columns = {"text": self.text, "label": self.label, "name": self.subset}
        rows = read_labelled(self.pinned, self.split, self.limit, **columns)
        if self.train is None and self.train_split is None:
            self._train_source = {"train": None, "train_split": None}
            training, self._test = divide(rows, test_share=self.test_share, seed=self.seed)
        else:
            path, split = pin(self.train or self.path), self.train_split or "train"
            self._train_source = {"train": self.train or self.path, "train_split": split}
            self._train_source |= {f"train_{k}": v for k, v in commit_of(path).items()}
            training, self._test = read_labelled(path, split, **columns), rows
        self._check_apart(training)
        self._train = self._draw(training)
        self._classes = sorted({row.label for row in [*training, *self._test]})
        self._check_labels()
        place = {label: number for number, label in enumerate(self._classes)}
        self._labels = Labels(
            [Question(str(r.number), r.text, self._classes, place[r.label]) for r in self._test]
        )
        self._right = torch.tensor([place[row.label] for row in self._test])
        self._fitted = np.array([place[row.label] for row in self._train])
        self._rows = [*self._test, *self._train]

    def _draw(self, rows: list[LabelledText]) -> list[LabelledText]:
        """Draw at most `samples_per_label` rows of each label; they keep the order of the file."""
        if self.samples_per_label is None:
            return rows
        counts: Counter[str] = Counter()
        drawn = []
        for number in np.random.default_rng(self.seed).permutation(len(rows)).tolist():
            label = rows[number].label
            counts[label] += 1
            if counts[label] <= self.samples_per_label:
                drawn.append(number)
        return [rows[number] for number in sorted(drawn)]

    def _check_apart(self, training: list[LabelledText]) -> None:
        """Refuse test rows that are all training rows, and warn of some."""
        both = find_shared(training, self._test)
        if not both:
            return
        text = f"{len(both)} of {len(self._test)} test texts of {self.name!r} are training texts"
        if len(both) == len(self._test):
            raise InputError(
                f"{text}: give other rows as `train`, such as `train_split: train[:50%]` with "
                "`split: train[50%:]` of one file, or leave both out."
            )
        rank_zero_warn(
            f"{text}, so the score may be too high; the first is {both[0].place()}. "
            "Leave these out."
        )

    def _check_labels(self) -> None:
        fitted = {row.label for row in self._train}
        if len(fitted) < 2 or len(self._test) < 2:
            raise InputError(
                f"Expected at least two labels in the training rows and two test rows of "
                f"{self.path!r} but got the labels {sorted(fitted)} and {len(self._test)} test "
                "rows: add rows."
            )
        if unknown := [row for row in self._test if row.label not in fitted]:
            first = unknown[0]
            rank_zero_warn(
                f"{len(unknown)} of {len(self._test)} test rows of {self.name!r} have a label that "
                f"no training row has, so they count as wrong; the first is {first.label!r:.60} in "
                f"{first.place()}."
            )

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> int:
        self._template.check(tokenizer, self.length)
        self._tokenizer = tokenizer
        self._tokens = [
            self._template.tokens(tokenizer, row.text, self.length) for row in self._rows
        ]
        self.note_longest(map(len, self._tokens), self._name_item)
        return len(self._rows)

    def _name_item(self, item: int) -> str:
        return self._rows[item].place()

    def chunks(self, size: int) -> list[list[int]]:
        return self.longest_first([len(text) for text in self._tokens])

    def report(self, table: ItemTable) -> TaskReport:
        values: dict[str, Tensor] = {}
        chosen: dict[str, Tensor] = {}
        sure: dict[str, Tensor] = {}
        size, models = len(self._test), table.models("embedding")
        for name in models:
            probability = self._classify(name, table[f"{name}/embedding"])
            sure[name], chosen[name] = probability.max(1)
            values[f"{name}/acc"] = (chosen[name] == self._right).double()
            for number, label in enumerate(self._classes):
                values[f"{name}/chosen/{label}"] = (chosen[name] == number).double()
        vectors = [table[f"{name}/embedding"][:size].double() for name in models]
        if same_width(vectors):
            values["embedding_cosine"] = embedding_cosine(*vectors)
        derived = ItemTable(size)
        derived.assign(torch.arange(size), values)
        details = self.details()
        results = derived.paired_results(self.name, ["acc"], details)
        results += self._labels.results(self.name, "acc", values, details)
        results += flip_results(self.name, chosen, self._right, {**details, "score": "acc"})
        results += derived.pair_results(self.name, ["embedding_cosine"], details)
        scores = self._paired(values)
        answers = "fixed" if self.primary == "acc" else None
        results += retained_results(self.name, scores, details, answers)
        return TaskReport(results, items=self._item_rows(chosen, sure), scores=scores)

    def _classify(self, name: str, embeddings: Tensor) -> Tensor:
        """Fit a classifier to the training rows of a model.

        Args:
            name: of the model.
            embeddings: (n + m, D), of the test rows, then of the training rows.

        Returns:
            Probability of each label for each test row, (n, C); 0 for a label that no training row
            has.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler
        from threadpoolctl import threadpool_limits

        vectors = embeddings.double().numpy()
        test, training = vectors[: len(self._test)], vectors[len(self._test) :]
        # One thread: the order of a sum, and with it its last bits, is the same everywhere.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # told below
            if self.standardise:
                scaler = StandardScaler().fit(training)
                test, training = scaler.transform(test), scaler.transform(training)
            classifier = LogisticRegression(max_iter=self.max_iter).fit(training, self._fitted)
            found = classifier.predict_proba(test)
        if int(classifier.n_iter_.max()) >= self.max_iter:
            rank_zero_warn(
                f"The classifier of the {name} model in {self.name!r} was still changing after "
                f"{self.max_iter} steps: raise `max_iter`."
            )
        probability = torch.zeros(len(test), len(self._classes), dtype=torch.float64)
        probability[:, torch.from_numpy(classifier.classes_)] = torch.from_numpy(found)
        return probability

    def _paired(self, values: dict[str, Tensor]) -> PairedScores | None:
        if self.primary == "acc":
            return paired_scores(values, "acc", self._labels.constant_scores())
        floor = 1 / len(set(self._labels.answers))
        return paired_scores(values, "acc", floor, self._labels.weights())

    def _item_rows(
        self, chosen: dict[str, Tensor], sure: dict[str, Tensor]
    ) -> Iterator[dict[str, Any]]:
        """Yield one row a test row and model: the label that it gives, and its probability."""
        for index, test in enumerate(self._test):
            for name, labels in chosen.items():
                answer = self._classes[int(labels[index])]
                row: dict[str, Any] = {"item": index, "id": str(test.number), "model": name}
                row |= {"prompt": test.text, "target": test.label, "answer": answer}
                row["probability"] = sure[name][index].item()
                row[f"right_{self.primary}"] = answer == test.label
                yield row

    def details(self) -> dict[str, Any]:
        """Return the options and hashes that two comparable results have in common."""
        embedding = self.embedding_details()
        del embedding["similarity"]
        return {
            **self.source_details(),
            "subset": subset_of(self.path, self.subset),
            **self._train_source,
            "rows_sha256": hash_rows([len(self._test), *((r.text, r.label) for r in self._rows)]),
            "train_rows": len(self._train),
            "labels": len(self._classes),
            "test_share": self.test_share if self._train_source["train"] is None else None,
            "samples_per_label": self.samples_per_label,
            "standardise": self.standardise,
            "max_iter": self.max_iter,
            "seed": self.seed,
            "template": self.template,
            **embedding,
            **score_details(self.use, self.primary),
            "chance": self._labels.constant_scores().mean().item(),
        }
