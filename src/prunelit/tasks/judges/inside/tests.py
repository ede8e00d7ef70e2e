"""The interpreter of the tests: it never runs code of the program, and never holds its objects."""

import builtins
import json
import os
import sys
import traceback
from types import ModuleType
from typing import Any, NoReturn

from prunelit.tasks.judges.inside.peer import READS, Peer, Reference

PASSED = b"1"


class Tests(Peer):
    """The end of the tests. The program may only call what a test gave to it, and iterate it.

    A test may read any object of the program. It uses methods and operators of an object only if it
    names the object or its class: anything else that a function returns cannot answer for itself.

    Args:
        socket: see `Peer`.
    """

    def __init__(self, socket: int) -> None:
        super().__init__(socket)
        self._named: set[int] = set()

    def may(self, reference: Reference, method: str) -> bool:
        return method in READS or not self._named.isdisjoint(reference._classes)

    def receive_output(self, text: str) -> None:
        sys.stdout.write(text)

    def ended(self) -> NoReturn:
        sys.stdout.flush()
        os._exit(1)

    def do(self, method: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if method not in ("__call__", "__iter__", "__next__"):
            raise TypeError(f"{method} of an object of the tests")
        return getattr(type(target), method)(target, *args, **kwargs)

    def look_up(self, name: str) -> Any:
        """Return what the program calls so."""
        value = self.ask("look up", None, name)
        if isinstance(value, Reference):
            self._named.add(value._number)
        return value


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
    tests = Tests(0)
    try:
        tests.ask("load", None, plan["program"])
    except BaseException:  # noqa: BLE001 - the program has printed it
        tests.ended()
    passed = run_tests(tests, plan["tests"], plan["statements"], plan["names"])
    sys.stdout.flush()
    if passed:
        os.write(control, PASSED)
    os._exit(0)
