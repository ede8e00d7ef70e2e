"""Curves, figures and texts in TensorBoard."""

import math
import re
from collections.abc import Mapping, Sequence

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from prunelit.report.curves import Curve, Picture
from prunelit.report.placed import Placed
from prunelit.report.quantities import find_quantity
from prunelit.report.tables import markdown_table

Layout = dict[str, dict[str, list[object]]]


def curve_tag(task: str, curve: Curve) -> str:
    """Return `val/<task>/<tag>/by_<axis>`. `by_<axis>` keeps it apart from a result's name."""
    return f"val/{task}/{curve.tag}/by_{curve.axis}"


def write_pictures(writer: SummaryWriter, pictures: Mapping[str, Picture]) -> None:
    """Write each figure under its name."""
    for name, picture in pictures.items():
        writer.add_figure(name, picture.figure, close=False)


def write_texts(
    writer: SummaryWriter, texts: Mapping[str, Sequence[dict[str, str]]], name: str = "texts"
) -> None:
    """Write the texts of each task as a table under `val/<task>/<name>`."""
    for task, rows in texts.items():
        if rows:
            writer.add_text(f"val/{task}/{name}", markdown_table(rows))


def write_curves(writer: SummaryWriter, curves: Mapping[str, Sequence[Curve]]) -> None:
    """Write the curves of each task as scalars, and a page of charts for each task.

    The step of a scalar is the block or the decoding step, so that the curves of several runs are
    drawn over each other. Blocks and steps without an item are left out.
    """
    for task, of_task in curves.items():
        for curve in of_task:
            for x, mean, n in zip(curve.x, curve.mean, curve.n, strict=True):
                if n:
                    writer.add_scalar(curve_tag(task, curve), mean, global_step=x)
    if pages := layout(curves):
        writer.add_custom_scalars(pages)


def write_settings(writer: SummaryWriter, placed: Sequence[Placed], method: str) -> None:
    """Write the curve of one method as scalars whose step is the setting.

    A step is a whole number, so a ratio is written in percent, or in a finer unit that its tag
    names. Methods with the same knob share the tags `by_<knob>/<task>/<quantity>`, so that their
    curves are drawn over each other.

    Args:
        writer: of the method.
        placed: settings of all methods.
        method: the method to write.
    """
    own = [one for one in placed if one.point.method == method and one.point.seed == 0]
    option = own[0].point.option
    power = _power([one.point.setting for one in placed if one.point.option == option])
    unit = {0: "", 2: "_percent"}.get(power, f"_x{10**power}")
    for one in own:
        step = round(one.point.setting * 10**power)
        for verdict in one.verdicts:
            name = f"by_{option}{unit}/{verdict.task}"
            details = verdict.result.details
            score = f"{name}/{details['primary']}"
            if one is own[0]:
                writer.add_scalar(score, details["dense"], global_step=0)
            writer.add_scalar(score, details["pruned"], global_step=step)
            for quantity in ("value", "low", "high"):
                number = getattr(verdict, quantity)
                if math.isfinite(number):
                    tag = f"{name}/kept" if quantity == "value" else f"{name}/kept_{quantity}"
                    writer.add_scalar(tag, number, global_step=step)


def _power(settings: Sequence[float]) -> int:
    """Return the power of 10 that makes all settings whole numbers; 1 counts as 2, per cent."""
    whole = (p for p in (0, 2, 3, 4, 5, 6) if all(_is_whole(s * 10**p) for s in settings))
    return next(whole, 6)


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-6


def write_hyperparameters(writer: SummaryWriter, parameters: Mapping[str, object]) -> None:
    """Write the options of a run for the page HPARAMS.

    TensorBoard shows the columns that the first run lists. Here no run lists any, so TensorBoard
    collects the options and the scalars of all runs.
    """
    _, start, end = hparams(dict(parameters), {})
    assert writer.file_writer is not None
    for summary in (start, end):
        writer.file_writer.add_summary(summary)


def layout(curves: Mapping[str, Sequence[Curve]]) -> Layout:
    """Return one page per task, with one chart per family of curves.

    Tags of one chart differ only in their last part, by the space or by the direction of the KL:
    the three cosines are in one chart, the divergences in another.
    """
    pages: Layout = {}
    for task, of_task in curves.items():
        charts: dict[str, list[str]] = {}
        for curve in of_task:
            if any(curve.n):
                prefix, _, quantity = curve.tag.rpartition("/")
                chart = f"{prefix}: {family(quantity)}" if prefix else family(quantity)
                # A chart takes patterns, not tags.
                charts.setdefault(chart, []).append(f"^{re.escape(curve_tag(task, curve))}$")
        if charts:
            pages[task] = {chart: ["Multiline", tags] for chart, tags in charts.items()}
    return pages


def family(quantity: str) -> str:
    """Return the chart of a quantity: `cosine` for `logit_cosine`, `kl` for `kl_dense_pruned`.

    An unknown quantity has a chart of its own.
    """
    record = find_quantity(quantity)
    return quantity if record is None else record.family
