"""Names in the code of tests: their own ones, and those of the program."""

import builtins
import symtable
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any


class Names(dict[str, Any]):
    """Global names of the tests: their own ones, then those of the program.

    Args:
        tests: the end that asks for them.
        shadows: names that the program defines. It may replace no other builtin.
    """

    def __init__(self, tests: Any, shadows: list[str]) -> None:
        super().__init__(__name__="__main__", __builtins__=builtins)
        self._tests, self._shadows = tests, {*shadows}

    def __missing__(self, name: str) -> Any:
        if not self.is_free(name):
            raise KeyError(name)
        return self._tests.look_up(name)

    def is_free(self, name: str) -> bool:
        """Return whether a name is one of the program."""
        is_builtin = hasattr(builtins, name) and name not in self._shadows
        return name not in self and not name.startswith("__") and not is_builtin


class Main(ModuleType):
    """The module `__main__`, in which `unittest` looks for tests.

    A test that replaces a name here replaces it in the program, unless it is one of the tests.

    Args:
        tests: the end that asks for names of the program.
        names: of the tests.
    """

    _tests: Any
    names: Names

    def __init__(self, tests: Any, names: Names) -> None:
        super().__init__("__main__")
        vars(self).update(_tests=tests, names=names)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.names:
            self.names[name] = value
        else:
            self._tests.ask("assign", None, name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.names:
            del self.names[name]
        else:
            self._tests.ask("delete", None, name)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.names[name]
        except KeyError:
            raise AttributeError(name) from None

    def __dir__(self) -> list[str]:
        return list(self.names)


def find_free(code: str) -> set[str]:
    """Return the names that tests use and never define, not even in one function."""
    tables = [symtable.symtable(code.encode(errors="replace").decode(), "<tests>", "exec")]
    used: set[str] = set()
    defined: set[str] = set()
    for table in tables:
        tables += table.get_children()
        for name in table.get_symbols():
            is_own = name.is_assigned() or name.is_imported() or name.is_parameter()
            (defined if is_own else used).add(name.get_name())
    return used - defined


def _taken(code: CodeType) -> list[str]:
    """Return the names that a body takes from outside: those that it does not define before."""
    import dis  # slow, and seldom needed

    first: dict[str, str] = {}
    for step in dis.get_instructions(code):
        if step.opname.endswith("_NAME"):
            first.setdefault(step.argval, step.opname)
    return [name for name, step in first.items() if step == "LOAD_NAME"]


def build_class_with(names: Names) -> Callable[..., Any]:
    """Return what builds a class of the tests.

    Python takes a name in the body of a class from the dictionary of names itself, without asking
    `Names` for one of the program. So these are in the dictionary while the body runs.
    """
    build = builtins.__build_class__

    def build_class(body: Any, *args: Any, **kwargs: Any) -> Any:
        lent = {}
        for name in _taken(body.__code__) if body.__globals__ is names else ():
            try:
                lent[name] = names[name]
            except KeyError:  # a builtin, or a name that is missing
                continue
        own = {*names}
        names.update(lent)
        try:
            return build(body, *args, **kwargs)
        finally:
            for name in lent.keys() - own:
                del names[name]

    return build_class
