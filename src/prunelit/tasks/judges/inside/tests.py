"""The interpreter of the tests: it never runs code of the program, and never holds its objects."""

import builtins
import json
import os
import sys
import traceback
from types import FunctionType, GeneratorType, SimpleNamespace
from typing import Any, NoReturn

from prunelit.tasks.judges.inside.carried import (
    CONTAINER,
    METHOD,
    NOT_CARRIED,
    OBJECT,
    OWN_NAME,
    PLAIN,
    SWALLOWED,
    find_reason,
)
from prunelit.tasks.judges.inside.errors import find_reference
from prunelit.tasks.judges.inside.iterators import replace_iterators
from prunelit.tasks.judges.inside.names import Main, Names, build_class_with, find_free
from prunelit.tasks.judges.inside.peer import (
    COMPARISONS,
    GENERATOR,
    OPERATORS,
    READS,
    Peer,
    Reference,
)
from prunelit.tasks.judges.inside.plain import Exchange
from prunelit.tasks.judges.inside.shares import Shares, Watched

PASSED = b"1"
REASONS = [b"%c" % letter for letter, _ in enumerate(NOT_CARRIED, ord("a"))]
# Attributes that a decorator copies from a function, and those that it goes without.
_COPIED = {"__name__", "__qualname__", "__doc__", "__module__"}
_LEFT_OUT = {"__annotations__", "__type_params__", "__dict__", "__wrapped__"}
# Standard objects that a test lends to the program with all of their methods.
_LENT = {"_io.StringIO", "_io.BytesIO", "random.Random", "types.SimpleNamespace"}
_CACHE = {"cache_info", "cache_clear"}  # of a function, without arguments


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
        self.names: dict[str, Any] = {}
        self.missed: str | None = None
        self.reduced: str | None = None
        self._shares = Shares(Watched)

    def miss(self, reason: str) -> None:
        if reason == PLAIN:
            self.reduced = PLAIN
            return
        self.missed = self.missed or (reason if reason in NOT_CARRIED else None)

    def receive_output(self, text: str) -> None:
        sys.stdout.write(text)

    def ended(self) -> NoReturn:
        sys.stdout.flush()
        os._exit(1)

    def ask(self, method: str, target: Any = None, *args: Any, **kwargs: Any) -> Any:
        self.flush()
        try:
            return super().ask(method, target, *args, **kwargs)
        except NameError as error:
            if isinstance(error.name, str) and error.name in self.names:
                self.miss(OWN_NAME)
            raise

    def receive_answer(self, method: str, exchange: Exchange, first: int) -> None:
        self._shares.add(method, exchange, first)

    def flush(self) -> None:
        """Write changes back before the program goes on."""
        for number in self._shares:
            share = self._shares[number]
            try:
                if share.has_changed():
                    self.miss(CONTAINER)  # it may hold a copy of what is in it
                    super().ask("write back", None, number, share.pack())
                is_kept = share.is_held and share.is_cheap and not self._shares.are_many
            except BaseException:  # noqa: BLE001 - the program does not take it
                is_kept = False
            if not is_kept:
                if share.is_held:
                    self.miss(CONTAINER)
                self._shares.drop(number)
                self.send(["drop", number])

    def find_old(self) -> None:
        """Find out if the tests still hold a container that the program has changed since."""
        for number in self._shares:
            share = self._shares[number]
            try:
                before = share.pack()
                share.take(super().ask("share", None, number))
                if share.pack() != before:
                    self.miss(CONTAINER)
            except BaseException:  # noqa: BLE001 - the program does not give it
                continue

    def do(self, method: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        is_class = isinstance(target, type)
        if is_class and (issubclass(target, type) or target.__module__.startswith("unittest.")):
            raise TypeError("classes, and mocks that equal everything, are made by the tests")
        if method == "__getattr__" and args[0] in _COPIED | _LEFT_OUT:
            value = getattr(target, args[0])
            if args[0] in _LEFT_OUT or not isinstance(value, str | None):
                raise AttributeError(args[0])
            return value
        if method in ("__call__", "__iter__", "__next__") or self._may(method, target, args):
            return super().do(method, target, args, kwargs)
        self.miss(OBJECT)
        raise TypeError(f"{method} of an object of the tests")

    def _may(self, method: str, target: Any, args: list[Any]) -> bool:
        """Return whether the program may do more with an object than call and iterate it."""
        if method in ("signature", *GENERATOR):
            return isinstance(target, FunctionType if method == "signature" else GeneratorType)
        kind = type(target)
        if method in ("__getattr__", "__setattr__") and args[0].startswith("_"):
            return False
        if method in ("__getattr__", "fields"):
            is_own_class = isinstance(target, type) and target.__module__ == "__main__"
            if is_own_class or f"{kind.__module__}.{kind.__qualname__}" in _LENT:
                return True
        return kind.__module__ == "__main__" or (
            method == "__setattr__" and kind is SimpleNamespace
        )

    def look_up(self, name: str) -> Any:
        """Return what the program calls so; what takes the place of a module is no such thing."""
        value = self.ask("look up", None, name)
        if not self._is_other(name):
            self._name(value)
        return value

    def name_classes(self, names: set[str]) -> None:
        """Name classes that the tests use, before the first of their objects comes."""
        wanted = [name for name in sorted(names) if not self._is_other(name)]
        values = self.ask("classes", None, wanted) if wanted else []
        # No more values than names: the program chooses the values.
        for value in values[: len(wanted)]:
            self._name(value)

    def _is_other(self, name: str) -> bool:
        return name in self._functions or name in sys.stdlib_module_names

    def _name(self, value: Any) -> None:
        reference = value if isinstance(value, Reference) else find_reference(value)
        if reference is not None:
            self._named.add(reference._number)

    def read(self, reference: Reference, name: str) -> Any:
        value = super().read(reference, name)
        if callable(value) and not self._is_named(reference) and name not in _CACHE:
            self.miss(METHOD)
            raise AttributeError(f"{name!r} is a method of a class that the tests do not name")
        return value

    def use(self, reference: Reference, method: str, args: Any, kwargs: Any) -> Any:
        """Call a special method of the object.

        An operator with a plain value takes the plain value that the object holds, if it holds one.
        Otherwise it never gives a plain value: an object could be equal to everything.
        """
        allowed = method in READS or method in GENERATOR or self._is_named(reference)
        if method in OPERATORS and not isinstance(args[0], Reference):
            plain = self.ask("held", reference)
            if not isinstance(plain, Reference | BaseException):
                # That of its class: an attribute of the value may come from the program.
                operator = getattr(type(plain), method, None)
                return operator(plain, *args) if operator else NotImplemented
            if allowed and method not in COMPARISONS:
                value = super().use(reference, method, args, kwargs)
                if isinstance(value, Reference):
                    return value
            self.miss(METHOD)
            return NotImplemented
        if method == "__exit__":
            return self._leave(reference, args)
        if method == "__next__":
            try:
                return super().use(reference, method, args, kwargs)
            except StopIteration as end:  # the one that may end a loop of the tests
                raise StopIteration(*end.args) from None
        if allowed:
            return super().use(reference, method, args, kwargs)
        if method == "__hash__":
            return object.__hash__(reference)
        self.miss(METHOD)
        if method in OPERATORS:
            return NotImplemented
        raise TypeError(f"{method} of a class that the tests do not name")

    def _leave(self, reference: Reference, args: Any) -> bool:
        """Leave a `with`. The program cannot swallow a test that fails."""
        kind, error, _ = args
        try:
            swallows = super().use(reference, "__exit__", (kind, error, None), {})
        except BaseException:
            if isinstance(error, AssertionError):
                return False
            raise
        if error is None or isinstance(error, AssertionError) or swallows is not True:
            return False
        if not self._is_named(reference):
            self.miss(SWALLOWED)
            return False
        return True

    def _is_named(self, reference: Reference) -> bool:
        return not self._named.isdisjoint(reference._classes)


def run_tests(tests: Tests, code: str, statements: list[str], shadows: list[str]) -> bool:
    """Run the tests; return whether they reach their end, or exit with status 0."""
    names = Names(tests, shadows)
    tests.names = names
    sys.modules["__main__"] = Main(tests, names)
    builtins.__build_class__ = build_class_with(names)
    replace_iterators()
    try:
        for statement in statements:
            try:
                exec(f"from __future__ import annotations\n{statement}", names)
            except ImportError:  # the tests miss it themselves if they need it
                continue
        compiled = compile(code.encode(errors="replace"), "<tests>", "exec")
        tests.name_classes({name for name in find_free(code) if names.is_free(name)})
        exec(compiled, names)
    except SystemExit as error:
        return error.code in (None, 0) and "from_the_other" not in vars(error)
    except BaseException:  # noqa: BLE001 - whatever ends the tests
        traceback.print_exc()
        return False
    return True


def main(control: int) -> None:
    """Read what to run from a file, and write there if the tests pass, or a letter of why not.

    Args:
        control: number of the file.
    """
    with open(control, "rb", closefd=False) as file:
        plan = json.load(file)
    tests = Tests(0, plan["functions"])
    try:
        tests.ask("load", None, plan["program"])
    except BaseException:  # noqa: BLE001 - the program has printed it
        if tests.missed:
            os.write(control, REASONS[NOT_CARRIED.index(tests.missed)])
        tests.ended()
    passed = run_tests(tests, plan["tests"], plan["statements"], plan["names"])
    sys.stdout.flush()
    if passed:
        os.write(control, PASSED)
        os._exit(0)
    tests.flush()
    tests.find_old()
    if (reason := tests.missed or find_reason(plan["tests"]) or tests.reduced) is not None:
        os.write(control, REASONS[NOT_CARRIED.index(reason)])
    os._exit(0)
