"""Gains: the sizes of both models."""

from typing import Any

from prunelit.report.page.runs import Run


def gain_lines(run: Run) -> list[dict[str, str]]:
    """Return one line for each size, dense and pruned; no line if they are not known."""
    report = run.pruning or _sizes(run)
    if report is None:
        return []
    lines = []
    place = "in memory" if run.models else "on disk"
    for label, key, unit in (
        ("Parameters, millions, zeros included", "parameters", 1_000_000),
        (f"Weights {place}, MB", "bytes", 1_000_000),
    ):
        before, after = report.get(key), report.get(f"stored_{key}")
        if before and after:
            gain = f"{1 - after / before:.1%}" if after != before else "none"
            cells = [f"{one / unit:,.4g}" for one in (before, after)]
            lines.append({"label": label, "dense": cells[0], "pruned": cells[1], "gain": gain})
    if "sparsity" in report:
        share = f"{report['sparsity']:.1%}"
        line = {
            "label": "Weights of the blocks that were removed",
            "dense": "0.0%",
            "pruned": share,
        }
        lines.append({**line, "gain": ""})
    return lines


def _sizes(run: Run) -> dict[str, Any] | None:
    """Return the sizes of a dense model and its candidate, by the keys of a pruning report."""
    names = {"": "dense", "stored_": "candidate"}
    if not run.models.keys() >= set(names.values()):
        return None
    keys = ("parameters", "bytes")
    return {f"{start}{key}": run.models[names[start]].get(key) for start in names for key in keys}


def gain_notes(run: Run) -> list[str]:
    """Say what the sizes mean, and what was not measured."""
    report = run.pruning
    if run.models:
        return [
            "Sizes are those of the weights as they were loaded: a GGUF file is loaded in float32, "
            "and a quantised weight counts its packed numbers.",
            "Speed, and memory while the model is used, were not measured.",
        ]
    if report is None:
        return ["The pruned model is not on this machine, so its size is not known here."]
    notes = []
    if report.get("stored_parameters") == report.get("parameters"):
        notes.append(
            "The removed weights are zeros. Zeros are stored and multiplied like any other number: "
            "this model is not smaller and not faster."
        )
    else:
        notes.append("The removed parts are taken out of the model: it is smaller.")
    notes.append("Speed, and memory while the model is used, were not measured.")
    return notes
