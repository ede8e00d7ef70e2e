"""Check configuration files before libraries are imported, and find the line of a key in them.

Internal: nothing here is public.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from prunelit.errors import InputError, close_names, first_line, similar_paths

_MOST_VALUES = 1_000_000  # of a YAML with its aliases written out
_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
_TEXT = "tag:yaml.org,2002:str"
_GROUPS = ("model", "data", "trainer")


def config_paths(arguments: Sequence[str]) -> list[str]:
    """Return the files that `--config` names on a command line.

    Example:
        >>> from prunelit.core.config_files import config_paths
        >>> config_paths(["fit", "--config", "a.yaml", "--config=b.yaml", "--config", "{}"])
        ['a.yaml', 'b.yaml']
    """
    found = []
    for number, argument in enumerate(arguments):
        if argument in ("-c", "--config") and number + 1 < len(arguments):
            found.append(arguments[number + 1])
        elif argument.startswith("--config="):
            found.append(argument.partition("=")[2])
    return [path for path in found if not _is_text(path)]


def check_configs(paths: Sequence[str]) -> None:
    """Refuse files that do not exist or are no YAML, and those that they name in turn.

    Raises:
        InputError: naming the file, and the line if there is one.
    """
    for path in paths:
        for _ in _read(Path(path), "", "", set()):
            pass


def name_place(paths: Sequence[str], key: str, owner: str | None, value: str | None = None) -> str:
    """Return " (line 4 of 'run.yaml')" for a key of some files, or "" if none of them has it.

    Args:
        paths: of files that `check_configs` accepts.
        key: with dots.
        owner: name of the class that takes the key; None for a key from the root.
        value: as text; a key with another value is not meant. None is any value.
    """
    for path in paths:
        for file, prefix, root in _read(Path(path), "", "", set()):
            for dotted, named, node, given in _entries(root, prefix, None):
                own = dotted == key if owner is None else node.value == key
                if own and (owner is None or named in (None, owner)) and _is_value(given, value):
                    return f" (line {node.start_mark.line + 1} of {str(file)!r})"
    return ""


def name_text(paths: Sequence[str], key: str) -> str:
    """Return ", in the text given for `a.b` (line 4 of 'run.yaml')", a text that holds a key."""
    for path in paths:
        for file, prefix, root in _read(Path(path), "", "", set()):
            for dotted, _, node, given in _entries(root, prefix, None):
                if (
                    isinstance(given, yaml.ScalarNode)
                    and given.value[:1] == "{"
                    and key in given.value
                ):
                    line = node.start_mark.line + 1
                    return f", in the text given for `{dotted}` (line {line} of {str(file)!r})"
    return ""


def _is_value(node: yaml.Node, value: str | None) -> bool:
    """Return True if a value can come from a node; a parser shows YAML as Python does."""
    if value is None:
        return True
    if isinstance(node, yaml.ScalarNode):
        shown = {"null": "none", "~": "none", "": "none"}.get(node.value, node.value.casefold())
        return shown == value.casefold()
    return value.startswith(("{", "[", "Namespace"))


def check_nodes(node: yaml.Node | None) -> None:
    """Refuse YAML that a parser takes for something else without a word.

    Raises:
        InputError: if a key is given twice, a class has a key that no class has, or aliases form a
            circle or stand for more than a million values.
    """
    _count(node, {})


def _is_text(path: str) -> bool:
    """Return True for a text in place of a file, and for the standard input."""
    return not os.path.lexists(path) and (path in ("", "-") or path[0] == "{" or ": " in path)


def _read(
    path: Path, prefix: str, named_in: str, known: set[str]
) -> Iterator[tuple[Path, str, yaml.Node]]:
    """Yield a file, the key that it is the value of, and its content; then the files in it."""
    shown = f"The configuration {str(path)!r}{named_in}"
    if not path.exists():
        raise InputError(f"{shown} does not exist{similar_paths(str(path))}: name a YAML file.")
    if path.is_dir():
        raise InputError(f"{shown} is a folder: name a YAML file in it.")
    if not path.is_file() or os.path.realpath(path) in known:  # a pipe can be read only once
        return
    known.add(os.path.realpath(path))
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        check_nodes(root)
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is not UTF-8 text: save it as UTF-8.") from error
    except InputError as error:
        raise InputError(f"{shown} cannot be used: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = 0 if error.problem_mark is None else error.problem_mark.line + 1
        problem = str(error.problem)
        if problem.startswith("but "):
            problem = f"{error.context} {problem}"
        raise InputError(
            f"{shown} is no valid YAML: {problem} in line {line}. Check the indentation, colons "
            "and quotes there and in the lines before."
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"{shown} is no valid YAML: {first_line(error)}.") from error
    except RecursionError:
        raise InputError(f"{shown} is nested too deeply: write fewer levels.") from None
    if not prefix and not isinstance(root, yaml.MappingNode):
        raise InputError(
            f"{shown} holds no options: expected keys such as `model`, `data` and `pruning`."
        )
    if not prefix and isinstance(root, yaml.MappingNode):
        _check_groups(root, shown)
    if root is None:
        return
    yield path, prefix, root
    for key, line, value in _named_files(root, prefix):
        inside = f", named in line {line} of {str(path)!r},"
        yield from _read(path.parent / value, key, inside, known)


def _check_groups(root: yaml.MappingNode, shown: str) -> None:
    """Refuse a group of options that is something else, which a parser takes for no options."""
    for key, value in root.value:
        named = isinstance(value, yaml.ScalarNode) and value.tag == _TEXT
        if key.value in _GROUPS and not (named or isinstance(value, yaml.MappingNode)):
            raise InputError(
                f"{shown} has {_shown(value)} as `{key.value}` in line "
                f"{key.start_mark.line + 1}: put options below it, name a YAML file, or leave it "
                "out."
            )


def _shown(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else f"{node.value!r:.60}"


def _named_files(node: yaml.Node, prefix: str) -> Iterator[tuple[str, int, str]]:
    """Find files in place of options: their key, line and name."""
    if isinstance(node, yaml.ScalarNode) and prefix and node.value.endswith((".yaml", ".yml")):
        yield prefix, node.start_mark.line + 1, node.value
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _named_files(item, prefix)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}.{key.value}".lstrip(".")
            if dotted != "trainer" and key.value != "init_args":
                yield from _named_files(value, dotted)


def _entries(
    node: yaml.Node, prefix: str, owner: str | None
) -> Iterator[tuple[str, str | None, yaml.Node, yaml.Node]]:
    """Yield each key of a tree: with dots, the name of its class, its node and that of its value.

    `init_args` and the numbers of lists are left out, as they are on the command line.
    """
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _entries(item, prefix, None)
    if not isinstance(node, yaml.MappingNode):
        return
    path = next((v.value for k, v in node.value if k.value == "class_path"), "")
    for key, value in node.value:
        if key.value == "init_args":
            yield from _entries(value, prefix, str(path).rpartition(".")[2] or None)
            continue
        dotted = f"{prefix}.{key.value}".lstrip(".")
        yield dotted, owner, key, value
        yield from _entries(value, dotted, None)


def _count(node: yaml.Node | None, known: dict[int, int | None]) -> int:
    """Count the values of a YAML node, those behind its aliases each time, and check its keys."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) in known:
        if (count := known[id(node)]) is None:
            raise InputError(
                f"an alias in line {node.start_mark.line + 1} of the YAML stands for a value that "
                "contains it: write the value out."
            )
        return count
    known[id(node)] = None
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        _check_class(node)
    children = [part for child in node.value for part in _parts(child)]
    count = 1 + sum(_count(child, known) for child in children)
    if count > _MOST_VALUES:
        raise InputError(
            f"the aliases in line {node.start_mark.line + 1} of the YAML stand for more than "
            f"{_MOST_VALUES} values: write fewer."
        )
    known[id(node)] = count
    return count


def _parts(child: yaml.Node | tuple[yaml.Node, ...]) -> tuple[yaml.Node, ...]:
    return child if isinstance(child, tuple) else (child,)


def _check_keys(node: yaml.MappingNode) -> None:
    known: dict[str, yaml.Node] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and (first := known.setdefault(key.value, key)) != key:
            raise InputError(
                f"the key {key.value!r} is given twice in the YAML, in line "
                f"{first.start_mark.line + 1} and in line {key.start_mark.line + 1}: keep one."
            )


def _check_class(node: yaml.MappingNode) -> None:
    """Refuse a class with keys that no class has; a parser would take them for options."""
    keys = {key.value: value for key, value in node.value if isinstance(key, yaml.ScalarNode)}
    if not keys.keys() & {"class_path", "init_args"}:
        return
    if (path := keys.get("class_path")) is not None and path.tag != _TEXT:
        raise InputError(
            f"expected `class_path` in line {path.start_mark.line + 1} of the YAML as the path of "
            f"a class but got {str(path.value)!r:.60}."
        )
    arguments = keys.get("init_args")
    named = isinstance(arguments, yaml.ScalarNode) and arguments.value[:1] in ("", "~", "n")
    if arguments is not None and not (named or isinstance(arguments, yaml.MappingNode)):
        raise InputError(
            f"expected `init_args` in line {arguments.start_mark.line + 1} of the YAML as options, "
            f"such as `limit: 3`, but got {_shown(arguments)}."
        )
    for key, _ in node.value:
        if key.value not in (*_CLASS_KEYS, "<<", "$schema"):
            near = close_names(str(key.value), _CLASS_KEYS)
            step = f"write `{near[0]}`" if near else "put options of the class under `init_args`"
            raise InputError(
                f"line {key.start_mark.line + 1} has the key {key.value!r:.60} beside "
                f"`{'class_path' if path is not None else 'init_args'}`: {step}."
            )
