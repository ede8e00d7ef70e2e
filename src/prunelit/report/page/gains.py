"""Gains: sizes, memory and speed of both models."""

from collections.abc import Iterator
from typing import Any

from prunelit.report.page.runs import Run

_MILLION = 1_000_000
ROUNDED = (
    "Rounding is simulated: the rounded weights stay numbers of full size in memory, and no file "
    "is written. The bytes in files are those of a program that packs the weights, with a scale "
    "and an offset of 16 bits for each group of 64; embeddings and other weights keep their bytes."
)
_CLEAR = 0.05  # a smaller change of speed is none, even if every round has it
# Label, key and unit of each size.
_SIZES = (
    ("Parameters, millions, zeros included", "parameters"),
    ("Weights in memory, MB", "bytes"),
    ("Files of weights and masks, MB", "file_bytes"),
    ("Memory in use, MB", "peak_bytes"),
)
_SPEEDS = (
    ("Reading a prompt, tokens a second", "prefill"),
    ("Writing, tokens a second", "decode"),
)


def gain_lines(run: Run) -> list[dict[str, str]]:
    """Return one line for each size and speed, dense and pruned; no line if none is known."""
    gains = sizes(run)
    lines = []
    for label, key in _SIZES:
        own = gains.get(key) or {}
        before, after = own.get("dense"), own.get("pruned")
        if before and after:
            cells = (f"{before / _MILLION:,.4g}", f"{after / _MILLION:,.4g}")
            lines.append(_line(label, *cells, size_gain(before, after)))
    for label, key in _SPEEDS:
        if own := (gains.get("speed") or {}).get(key):
            cells = (f"{own['dense']:,.3g}", f"{own['pruned']:,.3g}")
            lines.append(_line(label, *cells, _speed_gain(own)))
    if run.pruning is not None and "sparsity" in run.pruning:
        share = f"{run.pruning['sparsity']:.1%}"
        lines.append(_line("Weights of the blocks that were removed", "0.0%", share, ""))
    return lines


def _line(label: str, dense: str, pruned: str, gain: str) -> dict[str, str]:
    return {"label": label, "dense": dense, "pruned": pruned, "gain": gain}


def size_gain(before: float, after: float) -> str:
    """Say by how much a size shrank."""
    share = 1 - after / before
    if abs(share) < 0.0005:
        return "none"
    return f"{share:.1%}" if share > 0 else f"{-share:.1%} more"


def _speed_gain(own: dict[str, Any]) -> str:
    """Say how many times as fast the pruned model is, if every round agrees on the direction."""
    spread = f"{own['low']:.2f} to {own['high']:.2f}"
    if own["low"] > 1 and own["ratio"] >= 1 + _CLEAR:
        return f"{own['ratio']:.2f} times ({spread})"
    if own["high"] < 1 and own["ratio"] <= 1 - _CLEAR:
        return f"slower, {own['ratio']:.2f} times ({spread})"
    return f"none ({spread})"


def gain_sentence(gains: dict[str, Any]) -> str:
    """Say in one sentence what is gained.

    Args:
        gains: see `prunelit.callbacks.gains.measure_gains`.
    """
    return f"Gains: {'; '.join(_parts(gains))}."


def _parts(gains: dict[str, Any]) -> Iterator[str]:
    for name, key in (("parameters", "parameters"), ("memory", "peak_bytes")):
        if gains[key]["dense"] is not None:
            yield f"{name} {size_gain(gains[key]['dense'], gains[key]['pruned'])}"
    for name, key in (("reading", "prefill"), ("writing", "decode")):
        if own := gains["speed"].get(key):
            yield f"{name} {_speed_gain(own)}"


def sizes(run: Run) -> dict[str, Any]:
    """Return the gains of a run; if they were not measured, the sizes that its files know."""
    report, models = run.pruning, run.models
    if run.gains is not None:
        return run.gains
    if run.baseline is not None and run.baseline.get("bits"):
        return run.baseline
    if report is not None:
        pairs = {key: (report.get(key), report.get(f"stored_{key}")) for key in _KNOWN}
    elif models.keys() >= {"dense", "candidate"}:
        pairs = {key: tuple(models[name].get(key) for name in _NAMES) for key in _KNOWN}
    else:
        return {}
    return {key: dict(zip(("dense", "pruned"), pair, strict=True)) for key, pair in pairs.items()}


_KNOWN, _NAMES = ("parameters", "bytes"), ("dense", "candidate")


def gain_notes(run: Run) -> list[str]:
    """Say what the numbers mean, and what was not measured."""
    notes = []
    report = run.pruning
    if report is not None and report.get("stored_parameters") == report.get("parameters"):
        notes.append(
            "The removed weights are zeros. Zeros are stored and multiplied like any other number: "
            "this model is not smaller and not faster."
        )
    elif report is not None:
        notes.append("The removed parts are taken out of the model: it is smaller.")
    elif run.baseline is not None and run.baseline.get("bits"):
        notes.append(ROUNDED)
    elif not run.models:
        notes.append("The pruned model is not on this machine.")
    if run.gains is None:
        notes.append("Speed, and memory while the model is used, were not measured.")
    elif own := run.gains["speed"].values():
        notes.append(
            f"Speed and memory are those of one text, on {run.gains['device']} in "
            f"{run.gains['dtype']}; both models in turns, {max(one['rounds'] for one in own)} "
            "rounds. Memory in use: the weights and what the text needs. In brackets: the lowest "
            "and the highest ratio of a round."
        )
    else:
        notes.append(
            "Speed, and memory while the model is used, were not measured: the blocks of the "
            "models waited in files or on several devices."
        )
    if run.gains is not None:
        files = run.gains.get("file_bytes") or {}
        if files.get("dense") and files["dense"] < 0.9 * run.gains["bytes"]["dense"]:
            notes.append("The dense model is stored in fewer bits than it is loaded in.")
        if loads := run.gains.get("loads_in"):
            notes.append(f"The folder loads in {loads}.")
    if run.models:
        notes.append(
            "Sizes are those of the weights as they were loaded: a GGUF file is loaded in float32, "
            "and a quantised weight counts its packed numbers."
        )
    return notes
