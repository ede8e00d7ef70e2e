"""Figures of the task `Subspace`: the answer options in each space, and single questions."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator

from prunelit.report.curves import Picture
from prunelit.report.figures import CHANCE, DENSE, PRUNED
from prunelit.report.style import SPACES

_MODELS = {"dense": DENSE, "pruned": PRUNED}
_WIDTH = 0.38  # of a bar; a group has two bars

# A mean and its standard error.
Mean = tuple[float, float]


@dataclass
class Shown:
    """One question with the answers of both models.

    Args:
        number: number of the row.
        prompt: the prompt that both models read.
        options: (S,), text of each option.
        tokens: (S,), token of each option.
        label: index of the right option.
        log_likelihoods: by model, (S,), log-likelihood of each option's token, nats.
        top: by model, the most probable tokens: text, probability, True for the token of an option.
    """

    number: int
    prompt: str
    options: Sequence[str]
    tokens: Sequence[str]
    label: int
    log_likelihoods: Mapping[str, Sequence[float]]
    top: Mapping[str, Sequence[tuple[str, float, bool]]]


def spaces_picture(means: Mapping[str, Mean], n: int) -> Picture:
    """Draw cosines and divergences on the full vocabulary, beside those on the options alone.

    Args:
        means: mean by quantity; names with the prefix `subspace_` are those on the options.
        n: number of questions.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2.2])
    numbers: dict[str, list[object]] = {
        key: [] for key in ("quantity", "tokens", "mean", "standard_error", "n")
    }

    def draw(axes: Axes, labels: Mapping[str, str], colours: Sequence[str]) -> None:
        for place, (quantity, colour) in enumerate(zip(labels, colours, strict=True)):
            for side, (prefix, tokens) in enumerate((("", "all"), ("subspace_", "options"))):
                if prefix + quantity not in means:
                    continue
                value, error = means[prefix + quantity]
                twins = f"subspace_{quantity}" in means
                x = place + (_WIDTH * side if twins else _WIDTH / 2)
                look = {"alpha": 0.45, "hatch": "///"} if side else {}
                axes.bar(x, value, _WIDTH * 0.95, color=colour, edgecolor="white", **look)
                axes.errorbar(x, value, error, color="#222222", capsize=3, linewidth=1)
                top = value + (0 if np.isnan(error) else error)
                axes.annotate(
                    f"{value:.3g}",
                    (x, top),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                )
                for column, entry in zip(
                    numbers.values(), (quantity, tokens, value, error, n), strict=True
                ):
                    column.append(entry)
        axes.set_xticks([place + _WIDTH / 2 for place in range(len(labels))], list(labels.values()))
        axes.spines[["top", "right"]].set_visible(False)

    cosines = {f"{space}_cosine": space for space in SPACES}
    draw(left, cosines, list(SPACES.values()))
    divergences = {
        "kl_dense_pruned": "KL(dense ‖ pruned)",
        "kl_pruned_dense": "KL(pruned ‖ dense)",
    }
    draw(right, divergences, [SPACES["probability"]] * 2)
    left.set_ylabel("cosine dense, pruned")
    right.set_ylabel("nats")
    for axes in (left, right):
        axes.margins(y=0.12)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    plain = left.bar(0, 0, color="#888888", label="full vocabulary")
    hatched = left.bar(
        0, 0, color="#888888", edgecolor="white", alpha=0.45, hatch="///", label="options alone"
    )
    figure.legend(handles=[plain, hatched], loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(
        f"Answer options against the full vocabulary (mean ± standard error, n={n} questions)",
        fontsize=11,
    )
    return Picture(figure, numbers)


def options_picture(means: Mapping[str, Mean], chance: float, n: int) -> Picture:
    """Draw accuracy, probability and log-likelihoods of the options, dense beside pruned.

    Args:
        means: mean by `<model>/<quantity>`.
        chance: accuracy of random guessing.
        n: number of questions.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    numbers: dict[str, list[object]] = {
        key: [] for key in ("quantity", "model", "mean", "standard_error", "n")
    }
    parts = (
        {"acc": "accuracy", "option_mass": "probability of\nall options together"},
        {"log_likelihood_right": "right option", "log_likelihood_wrong": "wrong options (mean)"},
    )
    for axes, labels in zip(panels, parts, strict=True):
        for place, quantity in enumerate(labels):
            for side, (model, colour) in enumerate(_MODELS.items()):
                value, error = means[f"{model}/{quantity}"]
                x = place + _WIDTH * side
                name = model if place == 0 else f"_{model}"
                axes.bar(x, value, _WIDTH * 0.95, color=colour, label=name)
                axes.errorbar(x, value, error, color="#222222", capsize=3, linewidth=1)
                away = np.copysign(0 if np.isnan(error) else error, value)
                axes.annotate(
                    f"{value:.3g}",
                    (x, value + away),
                    xytext=(0, 3 if value >= 0 else -3),
                    textcoords="offset points",
                    ha="center",
                    va="bottom" if value >= 0 else "top",
                    fontsize=8,
                )
                for column, entry in zip(
                    numbers.values(), (quantity, model, value, error, n), strict=True
                ):
                    column.append(entry)
        axes.set_xticks([place + _WIDTH / 2 for place in range(len(labels))], list(labels.values()))
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].hlines(
        chance, -_WIDTH / 2, 1.5 * _WIDTH, colors=CHANCE, linestyles="dashed", label="chance"
    )
    panels[0].set_ylabel("share")
    panels[1].set_ylabel("log-likelihood of the option's token, nats")
    handles = panels[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle(
        f"Accuracy and probability of the answer options (mean ± standard error, n={n} questions)",
        fontsize=11,
    )
    return Picture(figure, numbers)


def item_picture(shown: Shown) -> Picture:
    """Draw one question: log-likelihoods of its options, and the top tokens of both models."""
    rows = max(2 * len(shown.options), len(shown.top["dense"]))
    figure = Figure(figsize=(12, 1.7 + 0.26 * rows), layout="constrained")
    left, *others = figure.subplots(1, 3, width_ratios=[1.3, 1, 1])
    numbers: dict[str, list[object]] = {
        key: [] for key in ("part", "model", "rank", "text", "value")
    }

    def note(*entry: object) -> None:
        for column, value in zip(numbers.values(), entry, strict=True):
            column.append(value)

    places = np.arange(len(shown.options))
    for side, (model, colour) in enumerate(_MODELS.items()):
        values = shown.log_likelihoods[model]
        left.barh(places + _WIDTH * side, values, _WIDTH * 0.95, color=colour, label=model)
        for rank, (option, value) in enumerate(zip(shown.options, values, strict=True)):
            note("log_likelihood", model, rank, option, value)
    labels = [
        f"{drawable(textwrap.shorten(option, 34, placeholder='…'))}"
        f"\n{_quoted(token)}{' (right)' if place == shown.label else ''}"
        for place, (option, token) in enumerate(zip(shown.options, shown.tokens, strict=True))
    ]
    left.set_yticks(places + _WIDTH / 2, labels, fontsize=8, parse_math=False)
    left.get_yticklabels()[shown.label].set_fontweight("bold")
    left.set_xlabel("log-likelihood of the option's token, nats")
    left.xaxis.set_major_locator(MaxNLocator(5))
    left.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    for axes, (model, colour) in zip(others, _MODELS.items(), strict=True):
        top = shown.top[model]
        edges = ["black" if of_option else colour for _, _, of_option in top]
        axes.barh(range(len(top)), [p for _, p, _ in top], color=colour, edgecolor=edges)
        axes.set_yticks(
            range(len(top)), [_quoted(text) for text, _, _ in top], fontsize=8, parse_math=False
        )
        for tick, (_, _, of_option) in zip(axes.get_yticklabels(), top, strict=True):
            tick.set_fontweight("bold" if of_option else "normal")
        axes.set_title(f"top tokens, {model}", fontsize=9)
        axes.set_xlabel("probability")
        for rank, (text, value, _) in enumerate(top):
            note("top", model, rank, text, value)
    widest = max(axes.get_xlim()[1] for axes in others)
    for axes in others:
        axes.set_xlim(0, widest)
    for axes in (left, *others):
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    prompt = drawable(textwrap.shorten(shown.prompt, 110, placeholder="…"))
    figure.suptitle(
        f"Row {shown.number}: {prompt}\n(outlined top tokens are those of options)",
        fontsize=10,
        parse_math=False,
    )
    return Picture(figure, numbers)


def item_lines(shown: Shown) -> dict[str, str]:
    """Format one question as a row of a text table."""
    answers = {
        model: shown.options[int(np.argmax(values))]
        for model, values in shown.log_likelihoods.items()
    }
    tops = {
        f"top tokens {model}": "\n".join(f"{text!r} {value:.3f}" for text, value, _ in top)
        for model, top in shown.top.items()
    }
    options = [
        f"{option}{' (right)' if place == shown.label else ''}"
        for place, option in enumerate(shown.options)
    ]
    return {"prompt": shown.prompt, "options": "\n".join(options), **answers, **tops}


def drawable(text: str) -> str:
    """Replace characters that the font of the figures lacks by their Python escapes."""
    font = get_font(findfont(FontProperties()))
    return "".join(
        character
        if character.isprintable() and font.get_char_index(ord(character))
        else character.encode("unicode_escape").decode()
        for character in text
    )


def _quoted(token: str) -> str:
    return drawable(repr(token if len(token) <= 24 else f"{token[:23]}…"))
