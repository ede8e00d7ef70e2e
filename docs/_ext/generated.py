"""Fills the pages of the site that are generated from the code, so that they cannot go stale.

A page asks for its part by a comment: `<!-- generated: options -->` is every option of the command
line, `<!-- metric: NAMES = FUNCTION -->` the row of a table about a function of `prunelit.metrics`.
"""

import collections.abc
import inspect
import json
import pkgutil
import re
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal, Union, get_args, get_origin
from unittest import mock

from jsonargparse import ArgumentParser
from sphinx.application import Sphinx

from prunelit import callbacks, cli, metrics
from prunelit.recipe import public_path

_MARK = re.compile(r"<!-- generated: (\w+) -->")
_METRIC = re.compile(r"<!-- metric: (.+?) = (\w+) -->")
_ROLE = re.compile(r":(?:\w+:)*\w+:`~?([^`<]+?)(?: ?<[^`]*>)?`")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", _fill)
    app.connect("env-get-outdated", lambda *_: ["reference/options", "reference/metrics"])
    app.connect("autodoc-process-docstring", _keep_bars)
    app.connect("missing-reference", _without_page)
    return {"parallel_read_safe": True}


def _fill(_app: Sphinx, _name: str, source: list[str]) -> None:
    text = _MARK.sub(lambda mark: _PARTS[mark[1]](), source[0])
    source[0] = _METRIC.sub(lambda mark: _metric(mark[1], mark[2]), text)


def _metric(names: str, function: str) -> str:
    """A row of a table: names with a link, what the docstring says, formula, source."""
    path = f"prunelit.metrics.{function}"
    text = inspect.getdoc(getattr(metrics, function)) or ""
    first = " ".join(text.partition("\n\n")[0].split())
    formula, source = (_section(text, title) for title in ("Formula", "Source"))
    assert formula, f"Expected a formula in the docstring of {path}."
    links = ", ".join(f"{{py:obj}}`{name} <{path}>`" for name in _escape(names).split(", "))
    return f"| {links} | {_escape(f'{first}<br>{formula}')} | {_escape(source)} |"


def _section(docstring: str, title: str) -> str:
    found = re.search(rf"^{title}:\n((?: +.*\n|\n)+)", docstring, flags=re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def _escape(cell: str) -> str:
    return cell.replace("|", r"\|")


def _without_page(_app: Sphinx, _env: Any, node: Any, content: Any) -> Any:
    """A name of prunelit that exists but has no page is no link; one that does not is an error."""
    if node.get("reftype") != "obj" or not node["reftarget"].startswith("prunelit."):
        return None
    try:
        pkgutil.resolve_name(node["reftarget"])
    except (ImportError, AttributeError):
        return None
    return content


def _keep_bars(_app: Sphinx, _kind: str, _name: str, _o: Any, _s: Any, lines: list[str]) -> None:
    """A norm such as |x| is no substitution of reStructuredText."""
    for number, line in enumerate(lines):
        parts = re.split(r"(`+[^`]*`+)", line)  # what stands between backticks is left alone
        if not line.lstrip().startswith((">>>", "...")):
            lines[number] = "".join(p if p[:1] == "`" else p.replace("|", r"\|") for p in parts)


def options() -> str:
    """Markdown of every option of the command line."""
    parsers = _parsers()
    fit = parsers["fit"]
    parts: list[str] = []
    known: set[str] = set()
    for title, prefixes in _GROUPS.items():
        actions = [a for a in _actions(fit) if a.dest.startswith(prefixes)]
        known |= {action.dest for action in actions}
        parts += [f"### {title}\n", "```{program} prunelit\n```\n", *map(_option, actions)]
    forgotten = {action.dest for action in _actions(fit)} - known
    assert not forgotten, f"Options without a group: {sorted(forgotten)}"
    own = [a for a in _actions(parsers["search"]) if a.dest in _SEARCHED]
    parts += ["### `sweep` and `search`\n", *map(_option, own)]
    return "\n".join(parts)


def classes() -> str:
    """Markdown of the options of every class that a configuration can name."""
    parts = []
    for title, members in _classes(_parsers()["fit"]).items():
        parts.append(f"### {title}\n")
        for cls in members:
            path = public_path(cls)
            parts.append(f"#### `{cls.__name__}`\n")
            parts.append(f"`class_path: {path}` ({{py:obj}}`reference <{path}>`)\n")
            parts += [_definition(action) for action in _options_of(cls)] or ["No options.\n"]
    return "\n".join(parts)


# `uses` and `seeds` are for `search` alone.
_SEARCHED = ("variants", "grid", "knobs", "uses", "seeds")
_GROUPS = {
    "The run": (
        *("seed_", "allow_code", "ckpt_path"),
        *("keep", "margin", "fail_on", "speed", "verbose", "baseline", "dry_run"),
    ),
    "`model`: the model and its training": ("model.",),
    "`data`: texts and tasks": ("data.",),
    "`pruning`: method and schedule": ("pruning",),
    "`trainer`: Lightning's Trainer": ("trainer.",),
}


def _parsers() -> dict[str, Any]:
    """The parser of each subcommand, as the command line builds it."""

    class Built(Exception):
        pass

    def stop(self: Any, *_: Any) -> None:
        raise Built(self._subcommand_parsers)

    with mock.patch.object(cli.PruneLitCLI, "parse_arguments", stop):
        try:
            cli.run([])
        except Built as built:
            return built.args[0]
    raise AssertionError("Expected the command line to parse its arguments.")


def _actions(parser: ArgumentParser) -> Iterator[Any]:
    """The actions that take a value of their own."""
    for action in parser._actions:
        kind = type(action).__name__
        if kind.startswith(("_Help", "_ActionHelp", "_ActionPrint", "_ActionConfigLoad")):
            continue
        if kind in ("ActionConfigFile", "ActionLink"):
            continue
        yield action


def _option(action: Any) -> str:
    return f"```{{option}} --{action.dest}\n{_facts(action)}: {_words(action)}\n```\n"


def _definition(action: Any) -> str:
    return f"`{action.dest}`\n: {_facts(action)}: {_words(action)}\n"


def _facts(action: Any) -> str:
    hint = getattr(action, "_typehint", None)
    kind = _type(hint) if hint is not None else _type(type(action.default))
    if action.default is None and action.required:
        return f"`{kind}`, required"
    return f"`{kind}`, default `{_value(action.default)}`"


def _words(action: Any) -> str:
    """The help text; names of prunelit are links, other roles of reStructuredText are code."""
    text = " ".join((action.help or "").replace("%%", "%").split())
    text = _ROLE.sub(lambda role: f"`{role[1]}`", text)
    return re.sub(r"`(prunelit\.[\w.]+)`", r"{py:obj}`\1`", text)


def _value(value: Any) -> str:
    """A default in the form of YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        plain = value and value.strip() == value and "\n" not in value
        return value if plain else json.dumps(value)
    return str(value)


def _type(hint: Any) -> str:
    """A type in the short form of a signature."""
    if hint is None or hint is type(None):
        return "null"
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " | ".join(map(_type, arguments))
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if _is_function(hint):
        return "function"
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(_type, arguments))}]"
    return getattr(hint, "__name__", str(hint))


def _classes(parser: ArgumentParser) -> dict[str, list[type]]:
    """Classes of prunelit that a configuration can name, by the option that takes them."""
    found: dict[str, list[type]] = {}
    waiting = [
        (action.dest, getattr(action, "_typehint", None))
        for action in _actions(parser)
        if not action.dest.startswith("trainer.")
    ]
    seen: set[type] = set()
    while waiting:
        option, hint = waiting.pop(0)
        for base in _named(hint):
            members = [cls for cls in _with_subclasses(base) if _own(cls) and cls not in seen]
            seen.update(members)
            if members:
                found.setdefault(f"`{option}`", []).extend(members)
            for cls in members:
                hints = [(a.dest, getattr(a, "_typehint", None)) for a in _options_of(cls)]
                waiting += [(f"{option}.{name}", inner) for name, inner in hints]
    watchers = [getattr(callbacks, name) for name in callbacks.__all__]
    shown = ("BestCheckpoint", "EarlyStopping", "LastCheckpoint")  # the others are always there
    found["`trainer.callbacks`"] = [cls for cls in watchers if cls.__name__ in shown]
    return found


def _is_function(hint: Any) -> bool:
    return get_origin(hint) is collections.abc.Callable


def _own(cls: type) -> bool:
    return cls.__module__.startswith("prunelit.") and not inspect.isabstract(cls)


def _named(hint: Any) -> Iterator[type]:
    """The classes of prunelit inside a type."""
    if inspect.isclass(hint) and hint.__module__.startswith("prunelit."):
        yield hint
    if not _is_function(hint):
        for argument in get_args(hint):
            yield from _named(argument)


def _with_subclasses(base: type) -> Iterator[type]:
    yield base
    for cls in base.__subclasses__():
        yield from _with_subclasses(cls)


def _options_of(cls: type) -> list[Any]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls)
    return list(_actions(parser))


_PARTS: dict[str, Callable[[], str]] = {"options": options, "classes": classes}
