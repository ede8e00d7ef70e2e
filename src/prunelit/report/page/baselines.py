"""Baselines of a run: the dense model rounded, and other models, beside the pruned one."""

from collections.abc import Sequence
from typing import Any

from prunelit.report.page.comparison import compare_runs
from prunelit.report.page.gains import ROUNDED, sizes
from prunelit.report.page.runs import Run
from prunelit.report.page.texts import join
from prunelit.report.page.verdict_view import task_strips
from prunelit.report.verdicts import list_verdicts, use_words

_MILLION = 1_000_000
_SIZES = ("parameters", "bytes", "file_bytes")


def baseline_sentences(run: Run) -> list[str]:
    """Say for each baseline of a run in one sentence what it keeps, and its size.

    Args:
        run: with its verdicts and those of its baselines.
    """
    return [_sentence(run, one) for one in run.baselines]


def _sentence(run: Run, baseline: Run) -> str:
    begin = f"Baseline {_name(baseline)}"
    if not _is_comparable(run, baseline):
        return f"{begin}: not compared, as its rows are not those of the run."
    groups: dict[str, list[str]] = {}
    for use, word in use_words(baseline.verdicts).items():
        groups.setdefault(word, []).append(use)
    parts = [
        f"{'no verdict on' if word == 'no lead' else word} {join(groups[word])}"
        for word in ("keeps", "loses", "cannot tell", "no lead")
        if word in groups
    ]
    if (found := _share(baseline)) is not None:
        share, where = found
        parts.append(f"{share} of the dense model's bytes{f', {where}' if where else ''}")
    return f"{begin}: {'; '.join(parts) or 'no verdict'}."


def list_baselines(run: Run) -> dict[str, Any]:
    """Return verdicts and sizes of each baseline as plain data, by its name.

    Args:
        run: with its verdicts and those of its baselines.
    """
    found = {}
    for one in run.baselines:
        own = one.baseline or {}
        known = sizes(one)
        found[_name(one)] = {
            "source": own.get("source"),
            "folder": one.name,
            "comparable": _is_comparable(run, one),
            **{key: known.get(key) for key in _SIZES},
            "file_bytes_are": "theory" if _is_rounded(one) else "measured",
            "left_out": own.get("left_out"),
            **list_verdicts(one.verdicts),
        }
    return found


def view_baselines(run: Run) -> dict[str, Any] | None:
    """Prepare the baselines of a run for the page; None if it has none.

    Args:
        run: with its verdicts and those of its baselines.
    """
    if not run.baselines:
        return None
    shown = [one for one in run.baselines if _is_comparable(run, one)]
    named = [("pruned", run.verdicts), *((_name(one), one.verdicts) for one in shown)]
    notes = [ROUNDED] if any(map(_is_rounded, shown)) else []
    for one in shown:
        for reason, tasks in (one.baseline or {}).get("left_out", {}).items():
            notes.append(f"{_name(one)} is not measured on {join(tasks)}: they {reason}.")
    notes.append("Each baseline has a page of its own: baselines/NAME/report.html beside this one.")
    return {
        "sentences": baseline_sentences(run),
        "strips": task_strips(named),
        "sizes": _size_lines([("pruned", run), *((_name(one), one) for one in shown)]),
        "notes": notes,
    }


def _size_lines(named: Sequence[tuple[str, Run]]) -> list[list[str]]:
    """Return name, sizes and share of the bytes of the dense model and of each run."""
    every = [{key: sizes(run).get(key) or {} for key in _SIZES} for _, run in named]
    dense = [[own[key].get("dense") for own in every if own[key].get("dense")] for key in _SIZES]
    lines = [["dense", *(_millions(next(iter(found), None)) for found in dense), "100%"]]
    for (name, run), own in zip(named, every, strict=True):
        cells = [_millions(own[key].get("pruned")) for key in _SIZES]
        share, where = _share(run) or ("not known", "")
        lines.append([name, *cells, share + (f" ({where})" if where else "")])
    return lines


def _millions(size: float | None) -> str:
    return "not known" if size is None else f"{size / _MILLION:,.4g}"


def _share(run: Run) -> tuple[str, str] | None:
    """Return the share of the bytes of the dense files, or of those in memory, and which it is."""
    for key, where in (("file_bytes", ""), ("bytes", "in memory")):
        own = sizes(run).get(key) or {}
        if own.get("dense") and own.get("pruned"):
            share = f"{own['pruned'] / own['dense']:.0%}"
            return share, "in theory" if _is_rounded(run) else where
    return None


def _name(run: Run) -> str:
    return str((run.baseline or {})["name"])


def _is_rounded(run: Run) -> bool:
    return bool((run.baseline or {}).get("bits"))


def _is_comparable(run: Run, baseline: Run) -> bool:
    return compare_runs([run, baseline]).word != "no"
