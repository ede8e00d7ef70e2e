"""Figures of one run."""

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from prunelit.report.main_scores import axis_begin, chance, is_main_score
from prunelit.report.results import Result
from prunelit.report.tables import size_sentence

DENSE, PRUNED, CHANCE = "#4C72B0", "#DD8452", "#444444"


def scores_figure(results: Sequence[Result]) -> Figure:
    """Draw the main score of every task, dense beside pruned.

    Whiskers are standard errors. A dashed line is the score of random guessing.
    """
    chosen: dict[tuple[str, str], dict[str, Result]] = {}
    for result in results:
        if is_main_score(result):
            chosen.setdefault((result.task, result.metric), {})[result.model] = result
    figure = Figure(figsize=(2.6 + 1.6 * max(2, len(chosen)), 3.6), layout="constrained")
    axes = figure.add_subplot()
    for offset, (model, colour) in enumerate((("dense", DENSE), ("pruned", PRUNED))):
        places = [i for i, models in enumerate(chosen.values()) if model in models]
        picked = [models[model] for models in chosen.values() if model in models]
        axes.bar(
            [place + 0.36 * offset for place in places],
            [result.value for result in picked],
            width=0.34,
            yerr=[result.standard_error for result in picked],
            capsize=3,
            color=colour,
            label=model,
        )
        for place, result in zip(places, picked, strict=True):
            axes.annotate(
                f"{result.value:.2f}",
                (place + 0.36 * offset, result.value + result.standard_error),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    labelled = False
    for place, models in enumerate(chosen.values()):
        level = chance(next(iter(models.values())))
        if level:
            axes.hlines(
                level,
                place - 0.2,
                place + 0.56,
                colors=CHANCE,
                linestyles="dashed",
                label="_chance" if labelled else "chance",
            )
            labelled = True
    axes.set_xticks(
        [place + 0.18 for place in range(len(chosen))],
        [
            f"{task}\n({metric}, n={next(iter(m.values())).n})"
            for (task, metric), m in chosen.items()
        ],
    )
    axes.set_ylim(
        axis_begin(result for models in chosen.values() for result in models.values()), 1.08
    )
    axes.axhline(0, color=CHANCE, linewidth=0.8)
    axes.set_ylabel("score")
    axes.set_title("Main scores, dense beside pruned (whiskers: ± standard error)", fontsize=10)
    if chosen:
        # Beside the axes, so that bars and legend do not overlap.
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def sparsity_figure(report: dict[str, Any]) -> Figure:
    """Draw the achieved sparsity of each weight: columns are blocks, rows are modules."""
    blocks = [block["name"] for block in report["blocks"]]
    modules: list[str] = []
    cells: dict[tuple[str, str], float] = {}
    for tensor in report["tensors"]:
        block = next(name for name in blocks if tensor["name"].startswith(name + "."))
        module = tensor["name"].removeprefix(block + ".").removesuffix(".weight")
        if module not in modules:
            modules.append(module)
        cells[module, block] = tensor["sparsity"]
    values = [[cells.get((module, block), float("nan")) for block in blocks] for module in modules]
    figure = Figure(
        figsize=(2.8 + 0.22 * len(blocks), 1.6 + 0.3 * len(modules)), layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.imshow(values, vmin=0, vmax=1, cmap=matplotlib.colormaps["viridis"], aspect="auto")
    axes.set_yticks(range(len(modules)), modules, fontsize=8)
    step = max(1, len(blocks) // 15)
    axes.set_xticks(range(0, len(blocks), step), [str(i) for i in range(0, len(blocks), step)])
    axes.set_xlabel("block")
    axes.set_title(
        f"Achieved sparsity (all weights of the blocks: {report['sparsity']:.4f})\n"
        f"{size_sentence(report)}",
        fontsize=10,
    )
    figure.colorbar(image, ax=axes, label="share that was removed")
    return figure
