"""The command `prunelit new`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from prunelit.core.new.files import (
    check_free,
    commands,
    part_paths,
    render_files,
    shown_path,
    write_files,
)
from prunelit.core.new.overlap import find_overlap
from prunelit.core.new.plans import Plan, plan_answer, plan_classify, plan_search, task_names
from prunelit.core.new.text_plan import TextPlan, plan_text
from prunelit.data.sources import is_hub_name, local_path
from prunelit.errors import InputError, explain, visible
from prunelit.report.score_test import MOST_ITEMS
from prunelit.report.tables import lines_table, show
from prunelit.report.verdicts import KEEP, USES, Margins

if TYPE_CHECKING:
    from prunelit.core.new.dense import DenseScore

_PLANS = {"search": plan_search, "classify": plan_classify, "answer": plan_answer}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Refuse the arguments in one sentence."""
        raise InputError(f"{message[:1].upper()}{message[1:]}: see `prunelit new --help`.")


def run_command(arguments: Sequence[str]) -> None:
    """Run the command; a mistake of the user is one sentence and status 2.

    Args:
        arguments: of the command line, after `new`.
    """
    try:
        _new(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # noqa: BLE001 - each ends in a sentence
        text, status = explain(error)
        print(text, file=sys.stderr)
        sys.exit(status)


def _new(arguments: Sequence[str]) -> None:
    given = _parse(arguments)
    margins = Margins(given.keep, given.margin)
    paths = part_paths(given.output)
    if not given.overwrite:
        check_free(paths)
    _check_model(given.model)
    texts, plans = _plan(given, paths[""].parent)
    tasks = [*plans, *(plan for text in texts for plan in text.tasks)]
    if not tasks:
        raise InputError(
            f"Expected more text in {given.text[0]!r} to measure a model on: add text, or give "
            "another file."
        )
    margins.check([*(plan.name for plan in tasks), *USES])
    for plan in plans or tasks:
        _print(f"{plan.name} ({plan.use or 'text'}): {plan.read}; {plan.count}.")
    for text in texts[:1]:
        _print(f"Calibration text: {text.read}.")
    for warning in [*(one for plan in plans for one in plan.warnings), *_overlaps(texts, tasks)]:
        _print(f"Warning: {warning}")
    text = texts[0] if texts else None
    model = shown_path(given.model, paths[""].parent)
    if not is_hub_name(given.model) and _has_chat(local_path(given.model)) is False:
        _without_chat(plans)
    write_files(render_files(paths, model, text, tasks, margins))
    _print(f"Written: {', '.join(map(str, paths.values()))}.")
    if given.measure:
        from prunelit.core.new.dense import DenseModel  # with torch

        dense = DenseModel(model, tasks, text.calibration if text else None)
        if not dense.has_chat() and _without_chat(plans):
            write_files(render_files(paths, model, text, tasks, margins))
        if found := dense.measure(margins):
            _show(found, plans, margins)
    _print("Next:")
    for command in commands(paths).values():
        _print(f"  {command}")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        "prunelit new",
        description="Look at your files, write a configuration of them, and measure the dense "
        "model. Each kind of file is optional and can be given several times.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="folder, GGUF file or name on the hub")
    for option, text in (
        ("--search", "folder with corpus, queries and qrels, or rows with choices"),
        ("--classify", "rows with a text and a label, or a question, choices and a label"),
        ("--answer", "rows with a question and an answer"),
        ("--text", "text to calibrate on: rows or a text file"),
    ):
        parser.add_argument(option, action="append", default=[], metavar="FILE", help=text)
    parser.add_argument(
        *("-o", "--output"),
        default="decision.yaml",
        metavar="FILE",
        help="configuration to write; default: decision.yaml",
    )
    parser.add_argument(
        "--keep",
        default=str(KEEP),
        metavar="SHARES",
        help="share of the dense model's lead over chance that must remain, also by the name of a "
        "task or use: generation=0.9,default=0.95",
    )
    parser.add_argument(
        "--margin",
        metavar="LOSSES",
        help="highest loss of a score in place of the share, by the name of a task or use: qa=0.05",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument(
        "--no-measure",
        dest="measure",
        action="store_false",
        help="write the configuration, and do not measure the dense model",
    )
    given = parser.parse_args(arguments)
    if not any((given.search, given.classify, given.answer, given.text)):
        raise InputError(
            "Expected at least one of `--search`, `--classify`, `--answer` and `--text`: give a "
            "file of yours."
        )
    return given


def _check_model(source: str) -> None:
    """Refuse a model that is not there; its content is checked when it is read."""
    if is_hub_name(source):
        return
    path = local_path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"Expected the folder of a model, with a config.json, as `--model` but {source!r} has "
            "none."
        )


def _plan(given: argparse.Namespace, folder: Path) -> tuple[list[TextPlan], list[Plan]]:
    asked = [(kind, path) for kind in _PLANS for path in getattr(given, kind)]
    names = task_names([path for _, path in asked])
    plans = [
        _PLANS[kind](path, shown_path(path, folder), name)
        for (kind, path), name in zip(asked, names, strict=True)
    ]
    texts = [
        plan_text(path, shown_path(path, folder), f"_{n + 1}" if n else "", whole=n > 0)
        for n, path in enumerate(given.text)
    ]
    return texts, plans


def _overlaps(texts: Sequence[TextPlan], plans: Sequence[Plan]) -> list[str]:
    """Say which tasks share texts with the calibration text."""
    warnings = []
    for plan in plans if texts else ():
        if plan.task == "Perplexity":  # the text of `Deviation`
            continue
        if both := find_overlap(plan.texts, texts[0].texts):
            first = " ".join(plan.texts[both[0]].split())
            warnings.append(
                f"{plan.name}: {len(both):,} of {len(plan.texts):,} texts are in the calibration "
                f"text, which makes a pruned model look better; the first is {first!r:.60}."
            )
    return warnings


def _has_chat(model: Path) -> bool | None:
    """Return True if the tokenizer in a folder has a chat template; None if it is no folder."""
    if not model.is_dir():
        return None
    if (model / "chat_template.jinja").is_file() or (model / "chat_template.json").is_file():
        return True
    try:
        config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return isinstance(config, dict) and bool(config.get("chat_template"))


def _without_chat(plans: Sequence[Plan]) -> bool:
    """Set up generation for a model without a chat template; return True if anything changed."""
    changed = False
    for plan in plans:
        if plan.task == "Generation" and "chat" not in plan.arguments:
            plan.arguments |= {"chat": False, "template": "Question: {context}\nAnswer:"}
            _print(f"{plan.name}: the model has no chat template, so it reads plain questions.")
            changed = True
    return changed


def _show(found: "dict[str, DenseScore]", plans: Sequence[Plan], margins: Margins) -> None:
    lines = []
    for plan in plans:
        own = found[plan.name]
        margin, absolute = margins.of(plan.name, str(plan.use))
        needed = f"more than {MOST_ITEMS:,}" if own.needed is None else f"{own.needed:,}"
        lines.append(
            {
                "task": plan.name,
                "items": f"{own.score.n:,}",
                "metric": own.score.metric,
                "dense": f"{own.score.value:.2f} ± {own.score.standard_error:.2f}",
                "chance": f"{own.floor:.2f}",
                "margin": f"{'lose' if absolute else 'keep'} {margin:g}",
                "items needed": needed if own.lead or absolute else "no lead",
            }
        )
    holm = f"\nThe {len(found)} tasks are judged together (Holm)." if len(found) > 1 else ""
    show(
        lines_table(
            "The dense model",
            "chance: random guessing, or the most frequent answer where answers are fixed.\n"
            "margin: keep at least this share of the lead over chance (--keep), or lose at most\n"
            "this much of the score (--margin).\n"
            "items needed: for the verdict `keeps` in 80 of 100 runs, if nothing is lost and\n"
            f"10% of the items flip: 5% get worse and 5% get better.{holm}",
            lines,
        )
    )
    few = []
    for plan in plans:
        own = found[plan.name]
        if not own.lead:
            _print(
                f"{plan.name}: the dense model is not above chance, so nothing can be lost here. "
                "Use more rows, another template or a better model."
            )
        elif own.needed is None or own.needed > own.score.n:
            few.append(plan.name)
    if few:
        _print(
            f"Too few items to tell a small loss: {', '.join(few)}. A large loss shows all the "
            "same. Add items, or allow a larger loss with `--keep` or `--margin`."
        )


def _print(line: str) -> None:
    """Print a line in which no character of a foreign text controls the terminal."""
    text, encoding = visible(line), sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
