"""The commands `prunelit report` and `prunelit worse`, which need no torch."""

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from prunelit.errors import InputError, explain, visible
from prunelit.report.page.changes import Change, find_changes
from prunelit.report.page.comparison import compare_runs
from prunelit.report.page.folder import report_folder
from prunelit.report.page.outcome import page_path, write_elsewhere, write_outcome
from prunelit.report.page.records import holds_variants
from prunelit.report.page.runs import Run, check_task, judge, read_run
from prunelit.report.page.texts import cut, mark_difference
from prunelit.report.page.view import closing_sentences
from prunelit.report.verdicts import FAILS, KEEP, Margins, use_words

_WIDTH = 80
_LONGEST = 400  # characters of a text in the terminal


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Refuse the arguments in one sentence."""
        raise InputError(f"{message[:1].upper()}{message[1:]}: see `{self.prog} --help`.")


def run_command(arguments: Sequence[str]) -> None:
    """Run one of the two commands; a mistake of the user is one sentence and status 2.

    Args:
        arguments: of the command line; the first one is `report` or `worse`.
    """
    try:
        status = (_report if arguments[0] == "report" else _worse)(arguments[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except Exception as error:  # noqa: BLE001 - each ends in a sentence
        text, status = explain(error)
        print(text, file=sys.stderr)
    if status:
        sys.exit(status)


def _report(arguments: Sequence[str]) -> int:
    parser = _Parser(
        "prunelit report",
        description="Decide the verdicts of one or several runs, and write a page on them. For "
        "one run, report.html, verdicts.json and the model card are written as at its end. For "
        "several runs, or with -o, the runs stay as they are.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder with results.jsonl, or of a sweep or search"
    )
    parser.add_argument(
        *("-o", "--output"),
        metavar="FILE",
        help="the page; its verdicts are beside it as .json; default for several runs: "
        "comparison.html in the first RUN",
    )
    parser.add_argument(
        "--keep",
        default=str(KEEP),
        help="share of the dense model's lead that must remain, also by name: qa=0.9,default=0.95",
    )
    parser.add_argument("--margin", help="highest loss of a score by name: answers=0.05")
    parser.add_argument(
        "--fail_on",
        choices=list(FAILS),
        help="exit with status 3 if a use loses, or if it does not keep (cannot_tell)",
    )
    given = parser.parse_args(arguments)
    margins = Margins(given.keep, given.margin)
    output = None if given.output is None else Path(given.output)
    if output is not None and (output.is_dir() or not output.name):
        raise InputError(f"Expected a file for the page but {given.output!r} is a folder.")
    if len(given.runs) == 1 and holds_variants(Path(given.runs[0])):
        report = report_folder(Path(given.runs[0]), margins, output)
        for line in "\n".join(report.lines()).splitlines():
            _print(line)
        return 3 if any(word in FAILS.get(given.fail_on, ()) for word in report.words()) else 0
    runs = _read_runs(given.runs)
    judge(runs, margins)
    path = page_path(runs, output)
    if output is None and len(runs) == 1:
        if (sentence := write_outcome(runs[0])) is not None:
            _print(sentence)
    else:
        write_elsewhere(runs, path)
    for line in (one for run in runs for one in margins.without_verdict(run.tasks, run.verdicts)):
        _print(line)
    for line in closing_sentences(runs):
        _print(line)
    _print(f"Page: {path}")
    return 3 if _fails(runs, given.fail_on) else 0


def _read_runs(folders: Sequence[str]) -> list[Run]:
    runs = [read_run(folder) for folder in folders]
    real = [os.path.realpath(run.folder) for run in runs]
    for number, folder in enumerate(real):
        if folder in real[:number]:
            raise InputError(f"The run {folders[number]!r} is given twice: give other runs.")
    return runs


def _fails(runs: Sequence[Run], fail_on: str | None) -> bool:
    if fail_on is None:
        return False
    if len(runs) > 1 and compare_runs(runs).word == "no":
        return fail_on == "cannot_tell"
    words = [word for run in runs for word in use_words(run.verdicts).values()]
    return any(word in FAILS[fail_on] for word in words) or (
        fail_on == "cannot_tell" and not all(run.verdicts for run in runs)
    )


def _worse(arguments: Sequence[str]) -> int:
    parser = _Parser(
        "prunelit worse",
        description="Print the items that were right and became wrong.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="folder with results.jsonl")
    parser.add_argument("--task", required=True, metavar="NAME", help="a task with items")
    parser.add_argument("--limit", type=int, default=10, help="number of items; default: 10")
    given = parser.parse_args(arguments)
    if given.limit < 1:
        raise InputError(f"Expected `--limit` of at least 1 but got {given.limit}.")
    run = read_run(given.run)
    check_task(run, given.task)
    changes = find_changes(run, given.task)
    _print(f"{given.task}: {changes.count()}; {changes.count(better=True)}.")
    for number, change in enumerate(changes.worse[: given.limit], 1):
        for line in _lines(number, change):
            _print(line)
    if (left := len(changes.worse) - given.limit) > 0:
        _print(f"{left:,} more: `--limit {len(changes.worse)}` prints all.")
    return 0


def _lines(number: int, change: Change) -> list[str]:
    """Format one item; » marks the first word that differs."""
    pair = mark_difference(cut(change.dense, _LONGEST), cut(change.pruned, _LONGEST))
    dense, pruned = (f"{p.before}»{p.marked}{p.after}" if p.marked else p.before for p in pair)
    note = f" ({change.note})" if change.note else ""
    rows = [
        ("", f"{number}. item {change.name}{note}"),
        ("prompt", cut(change.prompt.strip(), _LONGEST)),
        ("right", cut(change.target, _LONGEST)),
        ("dense", dense),
        ("pruned", pruned),
    ]
    lines = [""]
    for label, text in rows:
        if text:
            begin = f"   {label + ':':8}" if label else ""
            lines += textwrap.wrap(
                visible(" ".join(text.split())),
                _WIDTH,
                initial_indent=begin,
                subsequent_indent=" " * 11 if label else "   ",
            )
    return lines


def _print(line: str) -> None:
    """Print a line in which no character of a foreign text controls the terminal."""
    text = visible(line)
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
