"""The interpreter of the tests: it never runs code of the program, and never holds its objects."""

import builtins
import json
import os
import sys
import traceback
from types import ModuleType
from typing import Any, NoReturn

from prunelit.tasks.judges.inside.peer import COMPARISONS, OPERATORS, READS, Peer, Reference

PASSED = b"1"


class Tests(Peer):
    """The end of the tests.

    The program may call and iterate what a test gave to it, and use objects of the tests' classes.
    A test may read any object of the program. It uses methods and operators of an object only if it
    names the object or its class: anything else that a function returns cannot answer for itself.

    Args:
        socket: see `Peer`.
        functions: names of functions in a right program. Another thing of this name cannot answer
            for itself either.
    """

    def __init__(self, socket: int, functions: list[str]) -> None:
        super().__init__(socket)
        self._functions = {*functions}
        self._named: set[int] = set()

    def receive_output(self, text: str) -> None:
        sys.stdout.write(text)

    def ended(self) -> NoReturn:
        sys.stdout.flush()
        os._exit(1)

    def do(self, method: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if isinstance(target, type) and issubclass(target, type):
            raise TypeError("a class of the tests is made by the tests")
        own = type(target).__module__ == "__main__"
        hidden = method in ("__getattr__", "__setattr__") and args[0].startswith("_")
        if method in ("__call__", "__iter__", "__next__") or (own and not hidden):
            return super().do(method, target, args, kwargs)
        raise TypeError(f"{method} of an object of the tests")

    def look_up(self, name: str) -> Any:
        """Return what the program calls so; what takes the place of a module is no such thing."""
        value = self.ask("look up", None, name)
        is_other = name in self._functions or name in sys.stdlib_module_names
        if isinstance(value, Reference) and not is_other:
            self._named.add(value._number)
        return value

    def read(self, reference: Reference, name: str) -> Any:
        value = super().read(reference, name)
        if callable(value) and not self._is_named(reference):
            raise AttributeError(f"{name!r} is a method of a class that the tests do not name")
        return value

    def use(self, reference: Reference, method: str, args: Any, kwargs: Any) -> Any:
        """Call a special method of the object.

        An operator with a plain value takes the plain value that the object holds, if it holds one.
        Otherwise it never gives a plain value: an object could be equal to everything.
        """
        allowed = method in READS or self._is_named(reference)
        if method in OPERATORS and not isinstance(args[0], Reference):
            plain = self.ask("held", reference)
            if not isinstance(plain, Reference | BaseException):
                # That of its class: an attribute of the value may come from the program.
                operator = getattr(type(plain), method, None)
                return operator(plain, *args) if operator else NotImplemented
            if allowed and method not in COMPARISONS:
                value = super().use(reference, method, args, kwargs)
                return value if isinstance(value, Reference) else NotImplemented
            return NotImplemented
        if allowed:
            return super().use(reference, method, args, kwargs)
        if method in OPERATORS:
            return NotImplemented
        if method == "__hash__":
            return object.__hash__(reference)
        raise TypeError(f"{method} of a class that the tests do not name")

    def _is_named(self, reference: Reference) -> bool:
        return not self._named.isdisjoint(reference._classes)


class Names(dict[str, Any]):
    """Global names of the tests: their own ones, then those of the program.

    Args:
        tests: the end that asks for them.
        shadows: names that the program defines. It may replace no other builtin.
    """

    def __init__(self, tests: Tests, shadows: list[str]) -> None:
        super().__init__(__name__="__main__", __builtins__=builtins)
        self._tests, self._shadows = tests, {*shadows}

    def __missing__(self, name: str) -> Any:
        if name.startswith("__") or (hasattr(builtins, name) and name not in self._shadows):
            raise KeyError(name)
        return self._tests.look_up(name)


class Main(ModuleType):
    """The module `__main__`, in which `unittest` looks for tests."""

    names: Names

    def __getattr__(self, name: str) -> Any:
        try:
            return self.names[name]
        except KeyError:
            raise AttributeError(name) from None

    def __dir__(self) -> list[str]:
        return list(self.names)


def run_tests(tests: Tests, code: str, statements: list[str], shadows: list[str]) -> bool:
    """Run the tests; return whether they reach their end, or exit with status 0."""
    names = Names(tests, shadows)
    main = Main("__main__")
    main.names = names
    sys.modules["__main__"] = main
    try:
        for statement in statements:
            try:
                exec(f"from __future__ import annotations\n{statement}", names)
            except ImportError:  # the tests miss it themselves if they need it
                continue
        exec(compile(code.encode(errors="replace"), "<tests>", "exec"), names)
    except SystemExit as error:
        return error.code in (None, 0) and not hasattr(error, "from_the_other")
    except BaseException:  # noqa: BLE001 - whatever ends the tests
        traceback.print_exc()
        return False
    return True


def main(control: int) -> None:
    """Read what to run from a file, and write there if the tests pass.

    Args:
        control: number of the file.
    """
    with open(control, "rb", closefd=False) as file:
        plan = json.load(file)
    tests = Tests(0, plan["functions"])
    try:
        tests.ask("load", None, plan["program"])
    except BaseException:  # noqa: BLE001 - the program has printed it
        tests.ended()
    passed = run_tests(tests, plan["tests"], plan["statements"], plan["names"])
    sys.stdout.flush()
    if passed:
        os.write(control, PASSED)
    os._exit(0)
