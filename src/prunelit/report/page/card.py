"""The model card of a pruned model, and its scores in the form of the Hugging Face hub.

Both go into the folder of the pruned model, so that uploading it uploads them.
"""

import math
import os
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from prunelit.errors import visible
from prunelit.files import make_folder, write_text
from prunelit.report.page.baselines import baseline_sentences
from prunelit.report.page.comparison import source
from prunelit.report.page.gains import gain_lines, gain_notes
from prunelit.report.page.provenance import list_missing, name_command
from prunelit.report.page.reasons import warn
from prunelit.report.page.runs import Run
from prunelit.report.page.verdict_view import state_margins
from prunelit.report.page.words import headline, name_run
from prunelit.report.results import Result
from prunelit.report.tables import literal, markdown_table

CARD, SCORES_FOLDER = "README.md", ".eval_results"
_MARK = "<!-- written by prunelit, and replaced by its next run on this model -->"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def write_card(run: Run, folder: Path) -> str | None:
    """Write `README.md` and `.eval_results/` into the folder of the pruned model.

    Args:
        run: with its verdicts.
        folder: of the pruned model of the run.

    Returns:
        None, or a sentence that says why nothing was written: the card is another one, or the
        folder cannot be written.
    """
    path = folder / CARD
    if path.is_file() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return f"{path} was not written by prunelit, so it stays as it is."
    if not os.access(folder, os.W_OK):
        return f"{folder} cannot be written, so it gets no model card."
    write_text(path, format_card(run, folder.name))
    for task, text in format_scores(run).items():
        write_text(make_folder(folder / SCORES_FOLDER) / f"{task}.yaml", text)
    return None


def format_card(run: Run, name: str) -> str:
    """Format the card: metadata of the hub, then the decision, the gains and the warnings.

    Args:
        run: with its verdicts.
        name: of the model.
    """
    verdicts = [
        {
            "use": verdict.use,
            "task": verdict.task,
            "score": f"{own['score']} {_number(own['dense'])} → {_number(own['pruned'])}",
            "items": f"{own['n']:,}",
            "kept": verdict.interval(),
            "margin": verdict.bar(),
            "verdict": verdict.word,
        }
        for verdict in run.verdicts
        for own in (verdict.plain(),)
    ]
    parts = [
        f"---\n{_metadata(run, name)}---\n{_MARK}\n",
        f"# {literal(headline(run))}",
        f"{literal(name_run(run))} {literal(state_margins(run.verdicts))}".strip(),
        markdown_table(verdicts) if verdicts else "",
        "kept: share of the dense model's lead over its floor, with lower and upper 95% bound over "
        "all tasks."
        if verdicts
        else "",
        "## Gains",
        markdown_table(lines) if (lines := gain_lines(run)) else "",
        literal(" ".join(gain_notes(run))),
        *_list("Baselines", baseline_sentences(run)),
        *_list("Warnings", warn(run)),
        *_list("Not measured", [*list_missing(run)]),
        *([f"## Again\n\n{literal(command)}"] if (command := name_command(run)) else []),
        f"Written by prunelit {version('prunelit')}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _list(heading: str, sentences: Sequence[str]) -> Iterator[str]:
    if sentences:
        yield f"## {heading}"
        yield "\n".join(f"- {literal(sentence)}" for sentence in sentences)


def _number(value: float | None) -> str:
    return "not defined" if value is None or math.isnan(value) else f"{value:.3f}"


def _metadata(run: Run, name: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # a third of a second

    dense = source(run) or ""
    scores = [
        EvalResult(
            task_type="text-generation",
            dataset_type=_data_set(result),
            dataset_name=_data_set(result),
            dataset_config=_known(result.details.get("subset")),
            dataset_split=_known(result.details.get("split")),
            dataset_revision=_known(result.details.get("commit")),
            metric_type=_text(result.metric),
            metric_name=_text(f"{result.task}: {result.metric}"),
            metric_value=result.value,
        )
        for result in _scores(run)
    ]
    recipe = (run.pruning or {}).get("recipe") or {}
    method = str((recipe.get("pruner") or {}).get("class_path", "")).rpartition(".")[2]
    data = ModelCardData(
        base_model=dense if _is_hub_name(dense) else None,
        base_model_relation="quantized" if method == "Quantize" else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["prunelit", "pruned", *([_text(method).lower()] if method else [])],
        model_name=_text(name),
        eval_results=scores or None,
    )
    return f"{data.to_yaml()}\n"


def _data_set(result: Result) -> str:
    """Name a data set: its name on the hub, or that of its file without the folders."""
    path = str(result.details.get("path", result.task))
    return _text(path if _is_hub_name(path) else re.split("[/:]", path)[-1])


def _is_hub_name(text: str) -> bool:
    return bool(_HUB_NAME.fullmatch(text)) and not os.path.exists(text)


def _text(value: Any) -> str:
    """Write a text of someone else in one line, with its hidden characters visible."""
    return " ".join(visible(str(value)).split())


def _known(value: Any) -> str | None:
    return None if value is None else _text(value)


def _scores(run: Run) -> list[Result]:
    """Return the main score of the pruned model in each task."""
    found = (run.find(run.primary(task) or "", "pruned", task) for task in run.tasks)
    return [result for result in found if result is not None and math.isfinite(result.value)]


def format_scores(run: Run) -> dict[str, str]:
    """Format the main score of each task whose rows are those of a commit on the hub.

    Args:
        run: of the results.

    Returns:
        The text of each file, by the task's name.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    texts = {}
    for result in _scores(run):
        own = result.details
        if _is_hub_name(str(own.get("path"))) and own.get("commit"):
            entry = EvalResultEntry(
                dataset_id=own["path"],
                task_id=_text(str(own.get("subset") or "default")),
                value=result.value,
                dataset_revision=_text(str(own["commit"])),
                notes=_text(
                    f"{result.metric} of {result.n} rows of {own.get('split')}, measured by "
                    f"prunelit {version('prunelit')} as task {result.task}"
                ),
            )
            data = eval_result_entries_to_yaml([entry])
            texts[result.task] = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return texts
