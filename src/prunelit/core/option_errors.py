"""Say what a parser found in plain words, with the near names and the line of the file.

Internal: nothing here is public.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Collection, Sequence
from traceback import walk_tb
from types import ModuleType

from prunelit.core.command import SUBCOMMANDS
from prunelit.core.config_files import name_place, name_text
from prunelit.core.option_types import bases, literals, show_kinds, split_kinds
from prunelit.errors import close_names, near_names, similar_paths
from prunelit.recipe import public_path

# Rooms with classes that a configuration names.
_ROOMS = ("pruners", "tasks", "sparsity", "allocation", "callbacks", "schedule")

_UNION = re.compile(
    r'Parser key "([^"]+)":.*? Does not validate against any of the Union subtypes '
    r"Subtypes: \[(.+?)\] Errors: - (.+) Given value type: .+? Given value: (.*)"
)
_NO_CLASS = re.compile(r"Problem with given class_path .+(?:No module named|has no attribute)")
_NULL = "<class 'NoneType'>"
_YAML = re.compile(r"\.ya?ml$")
_NAMES_A_TYPE = re.compile(r"Expected a (?:<class|typing\.Literal|dot import path)")


def rephrase(message: str, owner: str | None, known: Collection[str], files: Sequence[str]) -> str:
    """Return the sentence of a message of jsonargparse; one of an unknown form stays as it is.

    Args:
        message: of the parser.
        owner: path of the class that takes the options; None for a subcommand.
        known: names of the options, with dots.
        files: configurations of the run.
    """
    text = " ".join(message.split())
    unknown = re.fullmatch(
        r"(?:Subcommand '\w+' does not accept option|Group '([\w.]+)' does not accept option"
        r"|Option) '(.+?)'(?: is not accepted.*)?",
        text,
    )
    if unknown:
        return _unknown(".".join(filter(None, unknown.groups())), owner, known, files)
    if found := re.fullmatch(r"unrecognized arguments: (.+)", text):
        first = next((one for one in found[1].split() if one.startswith("--")), None)
        if first is None:
            return f"Expected options such as `--config FILE` but got {found[1]!r:.80}."
        return _unknown(first.lstrip("-").partition("=")[0], owner, known, files)
    if found := re.fullmatch(r"the following arguments are required: (.+)", text):
        of = f" of {owner}" if owner else ""
        names = re.sub(rf"(?:{'|'.join(SUBCOMMANDS)})\.", "", found[1]).replace(", ", "`, `")
        return f"Expected a value for `{names}`{of}: give it in the YAML or as an option."
    if found := re.fullmatch(r"argument --([\w.]+)\S*: invalid \w+ value: '(.*)'", text):
        return (
            f"Expected `{found[1]}` as true or false but got {found[2]!r:.60}: write one of them."
        )
    if found := re.fullmatch(r'Parser key "([^"]+)"[^:]*:\s*(.+)', text):
        return _wrong(found[1], found[2], owner, files)
    return text


def _unknown(key: str, owner: str | None, known: Collection[str], files: Sequence[str]) -> str:
    """Name the first part of a key that no option has."""
    parts = key.split(".")
    head, level = key, 0
    for level in range(1, len(parts) + 1):
        head = ".".join(parts[:level])
        if not any(f"{name}.".startswith(f"{head}.") for name in known):
            break
    above = head.rpartition(".")[0]
    start = f"{above}." if above else ""
    beside = {name[len(start) :].partition(".")[0] for name in known if name.startswith(start)}
    names = close_names(parts[level - 1], beside) or sorted(beside)[:8]
    near = ", ".join(f"{start}{name}" for name in names)
    place = (
        name_place(files, key, _short(owner))
        or name_place(files, head, _short(owner))
        or name_text(files, head)
    )
    return f"{owner or 'prunelit'} does not accept `{head}`{place}: near names: {near}."


def name_owner(error: BaseException, files: Sequence[str]) -> str:
    """Say of which class, in which line, the first option in an error of a constructor is."""
    found = re.match(r"Expected `(\w+)` (?!of [A-Za-z]\w+\b(?! least))", str(error))
    if found is None:
        return ""
    for frame, _ in reversed([*walk_tb(error.__traceback__)]):
        values, name = frame.f_locals, found[1]
        if frame.f_code.co_name == "__init__" and "self" in values and name in values:
            owner = public_path(type(values["self"]))
            place = name_place(files, name, _short(owner), str(values[name]))
            return f"Expected `{name}` of {owner}{place} {str(error)[found.end() :]}"
    return ""


def explain_types(message: str, owner: str | None, files: Sequence[str]) -> str | None:
    """Name all types that an option accepts, where a value is of none of them.

    Returns:
        None if a class or a file is meant, and for any other message.
    """
    found = _UNION.fullmatch(" ".join(message.split()))
    if found is None:
        return None
    others = [one for one in found[3].split(" - ") if not _NAMES_A_TYPE.match(one)]
    if len(others) == 1 and _NO_CLASS.match(others[0]):
        return _wrong(found[1], others[0], owner, files)
    if others:
        return None
    key, kinds, value = found[1], split_kinds(found[2]), found[4]
    classes = [path.rpartition(".")[2] for path in _classes()] if bases(kinds) else []
    if _YAML.search(value) or "class_path" in value or close_names(value, classes):
        return None
    near = close_names(value, [one.strip("'") for one in literals(kinds)])
    hint = f" (similar: {near[0]!r})" if near else ""
    of = f" of {owner}" if owner else ""
    place = name_place(files, key, _short(owner), value)
    step = "write such a value."
    if value == "None" and _NULL in kinds:  # jsonargparse makes a text of null inside two classes
        step = f"for null, write `{key}: null` in the YAML, since an option cannot give it here."
    return f"Expected `{key}`{of}{place} as {show_kinds(kinds)} but got {value!r:.60}{hint}: {step}"


def _wrong(key: str, reason: str, owner: str | None, files: Sequence[str]) -> str:
    """Explain a value that does not fit its option."""

    def name(value: str | None = None) -> str:
        of = f" of {owner}" if owner else ""
        return f"`{key}`{of}{name_place(files, key, _short(owner), value)}"

    reason = re.sub(r"^- Expected a path but (?!\S+\.ya?ml ).+? or invalid - ", "", reason)
    if found := re.search(
        r"(?:Expected a path but|Unable to load config) ['\"]?(\S+\.ya?ml)\b", reason
    ):
        path = found[1]
        return f"{path!r}, given for {name(path)}, does not exist{similar_paths(path)}."
    if found := re.fullmatch(r"Expected a typing\.Literal\[(.*)\]\. Got value: (.*)", reason):
        near = close_names(found[2], re.findall(r"'([^']*)'", found[1]))
        hint = f" (similar: {near[0]!r})" if near else ""
        return (
            f"Expected {name(found[2])} as one of {found[1]} but got {found[2]!r:.60}{hint}: "
            "write one of them."
        )
    if found := re.fullmatch(r"Expected a (<class '[\w.]+'>)\. Got value: (.*)", reason):
        if _YAML.search(found[2]):
            return f"{found[2]!r}, given for {name()}, does not exist{similar_paths(found[2])}."
        kind = found[1].replace("collections.abc.Sequence", "list")
        return (
            f"Expected {name(found[2])} as {show_kinds([kind])} but got {found[2]!r:.60}: write "
            "such a value."
        )
    if found := re.fullmatch(
        r"Not of type \w+: (?:invalid literal .*: '(.*)'|(.+) does not conform to restriction (.+)"
        r"|could not .+?: '?(.*?)'?|(.+) not a number|.+ not '(\w+)')",
        reason,
    ):
        value = found[1] or found[2] or found[4] or found[5]
        limit = f" v with {found[3]}" if found[3] else ""
        shown = f"a {found[6]}" if value is None else f"{value!r:.60}"
        return f"Expected {name(value)} as a number{limit} but got {shown}: write such a number."
    if found := re.fullmatch(
        r"Not a valid subclass of (\w+)\. Got value: (.*?) Subclass .*", reason
    ):
        return (
            f"Expected {name(found[2])} as `class_path` and `init_args` of a {found[1]} but got "
            f"{found[2]!r:.60}."
        )
    if found := re.fullmatch(
        r"Import path (\S+) does not correspond to a subclass of (\w+)", reason
    ):
        return f"Expected {name()} as a subclass of {found[2]} but got {found[1]!r}."
    if found := re.fullmatch(
        r"Type .+ expects a function or a callable class: (.+)\. Got value: (.*)", reason
    ):
        return _no_class(found[2], found[1], name(), "function")
    if found := re.fullmatch(r"Expected an instantiatable class, but ([\w.]+) is abstract", reason):
        return _abstract(found[1], name())
    if found := re.fullmatch(r"(?:Problem with given class_path '([^']*)': )?(.+)", reason):
        if found[1]:
            return _no_class(found[1], found[2], name())
        if dotless := re.fullmatch(r"Expected a dot import path string: (.*)", reason):
            return _no_class(dotless[1], "", name())
    return f"{name()} cannot be used: {reason.rstrip('.')}."


def _abstract(path: str, name: str) -> str:
    base = pkgutil.resolve_name(path)
    if not path.startswith("prunelit."):
        missing = ", ".join(sorted(base.__abstractmethods__))
        return f"The class {path}, given for {name}, is abstract: it lacks {missing}. Define them."
    example = next(one for one in _classes() if issubclass(pkgutil.resolve_name(one), base))
    return (
        f"Expected a class for {name} but got options alone, or the base class {base.__name__}: "
        f"give `class_path`, such as {example}, and `init_args`."
    )


def _no_class(path: str, reason: str, name: str, kind: str = "class") -> str:
    """Explain a class that cannot be used; near names are those of its module, or all."""
    if _YAML.search(path):
        return f"{path!r}, given for {name}, does not exist{similar_paths(path)}: name a YAML file."
    if "." not in path and kind == "function":
        return f"Expected {name} as the path of a function but got {path!r}: write its module too."
    if "." not in path:
        every = {one.rpartition(".")[2]: one for one in _classes()}
        near = [every[one] for one in close_names(path, every)] or [*every.values()][:3]
        return f"Expected {name} as the path of a class but got {path!r}: near: {', '.join(near)}."
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", reason):
        module = importlib.import_module(found[1])
        near = near_names(found[2], _members(module, found[2]))
        return (
            f"The {kind} {path!r}, given for {name}, does not exist: {found[1]} has no "
            f"{found[2]!r}; near names: {near}."
        )
    step = ". Put its file into the folder of the call." if "No module" in reason else "."
    return f"The {kind} {path!r}, given for {name}, cannot be used: {reason.rstrip('.')}{step}"


def _classes() -> list[str]:
    """Return the paths of the classes of prunelit that a configuration names."""
    rooms = {room: importlib.import_module(f"prunelit.{room}") for room in _ROOMS}
    return [
        f"prunelit.{room}.{name}"
        for room, module in rooms.items()
        for name in module.__all__
        if inspect.isclass(one := getattr(module, name)) and not inspect.isabstract(one)
    ]


def _members(module: ModuleType, like: str) -> list[str]:
    """Return the names in a module: the modules in it, or what it exports, as `like` is written."""
    if like.islower() and hasattr(module, "__path__"):
        return [one.name for one in pkgutil.iter_modules(module.__path__)]
    return getattr(module, "__all__", None) or [name for name in dir(module) if name[0] != "_"]


def _short(owner: str | None) -> str | None:
    return None if owner is None else owner.rpartition(".")[2]
