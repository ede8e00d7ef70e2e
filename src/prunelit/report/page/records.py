"""The record of each variant of a sweep or a search, and the variants of a folder.

A record, `variant.json`, is written when a variant is measured. A later sweep or search with the
same settings reads it instead of measuring the variant again.
"""

import json
from pathlib import Path

from prunelit.files import write_text
from prunelit.report.page.outcome import format_outcome, write_outcome
from prunelit.report.page.record_file import DAMAGED, RESULTS, digest_results, read_digested
from prunelit.report.page.runs import VERDICTS, Run, judge, read_run
from prunelit.report.variants import (
    Variant,
    format_variants,
    parse_variant,
    read_variants,
    same_dense,
)
from prunelit.report.verdicts import Margins

RECORD = "variant.json"
FIGURES, VARIANTS = "figures", "variants.json"


def write_record(folder: Path, variant: Variant, key: str | None) -> None:
    """Write down that a variant is measured.

    Args:
        folder: of its results.
        variant: with its results.
        key: identifies all that the results depend on; None if that is not known.
    """
    data = {"key": key, "results": digest_results(folder), "variant": format_variants([variant])}
    write_text(folder / RECORD, json.dumps(data) + "\n")


def read_record(folder: Path, key: str | None = None) -> Variant | None:
    """Read a variant that was measured; None if it was not, or the record is damaged.

    Args:
        folder: of its results.
        key: of all that the results depend on; None is any.
    """
    try:
        data = read_digested(folder / RECORD, key)
        return None if data is None else parse_variant(json.loads(data["variant"])[0])
    except DAMAGED:
        return None


def read_records(folder: Path) -> list[Variant]:
    """Read every variant that was measured in a folder, in the order of their names."""
    found = (read_record(path.parent) for path in sorted(folder.glob(f"*/{RECORD}")))
    return [variant for variant in found if variant is not None]


def decide_again(folder: Path, margins: Margins) -> Run:
    """Decide the verdicts of a variant from its scores; write them if the margins are other ones.

    Args:
        folder: of its results.
        margins: of this run.

    Returns:
        The run with its verdicts.
    """
    run = read_run(folder)
    judge([run], margins)
    text = format_outcome(run)
    path = folder / VERDICTS
    if run.verdicts and not (path.is_file() and path.read_bytes() == text.encode()):
        write_outcome(run)
    return run


def read_all(folder: Path) -> list[Variant]:
    """Read the variants that the figures of a folder show, and those that came later.

    A run that was killed leaves records of variants that are in no figure.

    Args:
        folder: of all variants.

    Returns:
        The variants that can be compared with each other; empty if the folder holds none.
    """
    drawn = read_variants(folder / FIGURES / VARIANTS) or []
    names = {variant.name for variant in drawn}
    for path in sorted(folder.glob(f"*/{RECORD}")):
        variant = None if path.parent.name in names else read_record(path.parent)
        if variant is not None and (not drawn or same_dense(drawn[0], variant)):
            drawn.append(variant)
    return drawn


def holds_variants(folder: Path) -> bool:
    """Return True for the folder of a sweep or a search, False for that of a run or another one."""
    if (folder / RESULTS).is_file():
        return False
    return (folder / FIGURES / VARIANTS).is_file() or any(folder.glob(f"*/{RECORD}"))
