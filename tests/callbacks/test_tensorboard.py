"""Curves and figures of tasks, read back from disk and from TensorBoard."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.backend_context import Context
from torch.utils.tensorboard import SummaryWriter

from prunelit.callbacks import Results
from prunelit.callbacks.tensorboard import family, layout, write_hyperparameters
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.report.curves import Curve, Picture
from prunelit.report.results import Result
from prunelit.tasks import Perplexity, Task, TaskReport
from prunelit.tasks.item_table import ItemTable
from prunelit.trainer import PruneTrainer

# A curve over blocks, of which the second was never reached, and two more of the same kind.
BLOCKS, REACHED = [0, 1, 2], [4, 0, 3]
TAGS = [
    *("local/mlp/embedding_cosine", "local/mlp/logit_cosine", "local/mlp/probability_cosine"),
    *("local/mlp/kl_dense_pruned", "local/mlp/kl_pruned_dense", "local/mlp/js"),
    *("cumulative/mlp/logit_cosine", "step"),
]


class Drawn(Perplexity):
    """Has curves, figures and a row that bears the name of a curve."""

    def report(self, table: ItemTable) -> TaskReport:
        results = super().report(table).results
        results.append(Result(self.name, TAGS[0], "pair", 0.25, 0.1, 4))
        return TaskReport(results, curves=self.curves(), pictures=self.pictures())

    def curves(self) -> list[Curve]:
        nan = float("nan")
        return [
            Curve(tag, "step" if tag == "step" else "block", BLOCKS, [place + 0.5, nan, place],
                  [0.0, nan, 0.0], [9.0, nan, 9.0], REACHED, "min-max", [0.1, nan, 0.2])
            for place, tag in enumerate(TAGS)
        ]  # fmt: skip

    def pictures(self) -> Iterator[tuple[str, Picture]]:
        figure = Figure()
        figure.add_subplot().plot([1, 2])
        numbers = {"x": [1, 2], "name": ["a", 'b, "c"']}
        yield "drawn_lines", Picture(figure, numbers)
        yield "alone", Picture(figure)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, material: Path) -> Path:
    """The logger's folder of a validation with the task above."""
    folder = tmp_path_factory.mktemp("drawn")
    text = str(material / "text.jsonl")
    tasks: list[Task] = [Drawn(text, length=20, limit=3, name="drawn"), Perplexity(text, length=20)]
    trainer = PruneTrainer(
        accelerator="cpu",
        callbacks=[Results()],
        default_root_dir=folder,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=TensorBoardLogger(folder, "board", version="only", default_hp_metric=False),
        max_epochs=0,
    )
    trainer.validate(PairedLM(str(material / "dense")), datamodule=PruneData(None, tasks))
    return folder / "board" / "only"


@pytest.fixture(scope="module")
def drawn_events(drawn: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(drawn), size_guidance={"tensors": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def lines(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_every_figure_is_a_file_with_its_numbers_beside_it(drawn: Path) -> None:
    names = {path.name for path in (drawn / "figures").iterdir()}
    assert names == {
        *("scores.png", "scores.csv", "drawn_lines.png", "drawn_lines.csv"),
        *("drawn_alone.png", "drawn_curves.csv"),
    }
    assert lines(drawn / "figures" / "drawn_lines.csv") == [
        {"x": "1", "name": "a"},
        {"x": "2", "name": 'b, "c"'},
    ]
    image = matplotlib.image.imread(drawn / "figures" / "drawn_lines.png")
    assert image.shape[:2] == (720, 960)  # 6.4 x 4.8 inches at 150 dpi


def test_the_curves_of_a_task_are_one_file(drawn: Path) -> None:
    found = lines(drawn / "figures" / "drawn_curves.csv")
    assert len(found) == len(TAGS) * len(BLOCKS)
    assert found[2] == {
        "curve": TAGS[0],
        "axis": "block",
        "x": "2",
        "mean": "0",
        "standard_error": "0.2",
        "low": "0.0",
        "high": "9.0",
        "n": "3",
    }


def test_a_curve_is_a_scalar_over_its_blocks(drawn_events: EventAccumulator) -> None:
    for place, tag in enumerate(TAGS):
        axis = "step" if tag == "step" else "block"
        scalars = drawn_events.Scalars(f"val/drawn/{tag}/by_{axis}")
        # A place that no item reached is left out.
        assert [(s.step, s.value) for s in scalars] == [(0, place + 0.5), (2, place)]


def test_a_row_that_bears_a_curves_name_keeps_its_own_scalar(
    drawn_events: EventAccumulator,
) -> None:
    scalars = drawn_events.Scalars(f"val/drawn/{TAGS[0]}")
    assert {(s.step, s.value) for s in scalars} == {(0, 0.25)}


def test_curves_of_a_kind_share_a_chart(drawn_events: EventAccumulator) -> None:
    (event,) = drawn_events.Tensors("custom_scalars__config__")
    pages = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0]).category
    assert [page.title for page in pages] == ["drawn"]
    charts = {chart.title: list(chart.multiline.tag) for chart in pages[0].chart}
    tags = drawn_events.Tags()["scalars"]
    # A chart lists patterns, and each matches one existing tag.
    shown = {
        title: [next(tag for tag in tags if re.match(pattern, tag)) for pattern in patterns]
        for title, patterns in charts.items()
    }
    for patterns in charts.values():
        for pattern in patterns:
            assert sum(bool(re.match(pattern, tag)) for tag in tags) == 1
    start = "val/drawn/local/mlp"
    assert shown == {
        "local/mlp: cosine": [
            *(f"{start}/embedding_cosine/by_block", f"{start}/logit_cosine/by_block"),
            f"{start}/probability_cosine/by_block",
        ],
        "local/mlp: kl": [f"{start}/kl_{d}/by_block" for d in ("dense_pruned", "pruned_dense")],
        "local/mlp: js": [f"{start}/js/by_block"],
        "cumulative/mlp: cosine": ["val/drawn/cumulative/mlp/logit_cosine/by_block"],
        "step": ["val/drawn/step/by_step"],
    }


def test_figures_of_tasks_are_images_of_tensorboard(drawn_events: EventAccumulator) -> None:
    assert set(drawn_events.Tags()["images"]) == {"scores", "drawn_lines", "drawn_alone"}


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        ("embedding_cosine", "cosine"),
        ("probability_cosine_estimate", "cosine_estimate"),
        ("logit_orthogonal", "orthogonal"),
        ("kl_pruned_dense", "kl"),
        ("kl_dense_pruned_estimate", "kl"),
        ("logit_std_top5", "logit_std"),
        ("top5_overlap", "top tokens"),
        ("logit_mse", "logit_mse"),
        ("js", "js"),
    ],
)
def test_families(quantity: str, expected: str) -> None:
    assert family(quantity) == expected


def test_tags_that_are_patterns_and_curves_without_a_point() -> None:
    def curve(tag: str, n: int) -> Curve:
        return Curve(tag, "step", [0], [1.0], [1.0], [1.0], [n], "", [0.0])

    pages = layout(
        {"a.b": [curve("x+y", 1), curve("never", 0)], "empty": [], "gone": [curve("x", 0)]}
    )
    assert pages == {"a.b": {"x+y": ["Multiline", [r"^val/a\.b/x\+y/by_step$"]]}}


def test_the_page_of_options_has_the_columns_of_all_runs(tmp_path: Path) -> None:
    runs = {"b": {"pruner": "Wanda", "sparsity.ratio": 0.5}, "a": {"pruner": "Drop", "count": 3}}
    for name, parameters in runs.items():
        with SummaryWriter(tmp_path / name) as writer:
            writer.add_scalar(f"val/{name}/acc", 1.0)
            write_hyperparameters(writer, parameters)
    loaded = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    loaded.Reload()
    provider = MultiplexerDataProvider(loaded, str(tmp_path))
    page, request = Context(TBContext(data_provider=provider)), RequestContext()
    found = page.experiment_from_metadata(
        request, "", True, page.hparams_metadata(request, ""), data_provider_hparams=[]
    )
    columns = {info.name for info in found.hparam_infos}
    assert columns == {"pruner", "count", "sparsity.ratio"}
    assert {info.name.tag for info in found.metric_infos} == {"val/a/acc", "val/b/acc"}
