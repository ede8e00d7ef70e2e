"""One of two interpreters that talk over a socket: calls, their answers, and objects by number."""

import copy
import json
import sys
from _thread import RLock, allocate_lock
from collections.abc import Generator
from importlib import import_module
from types import FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any, NoReturn

from prunelit.tasks.judges.inside.carried import CLASS, PLAIN
from prunelit.tasks.judges.inside.errors import (
    error_class,
    error_fields,
    find_reference,
    is_standard,
)
from prunelit.tasks.judges.inside.plain import Exchange
from prunelit.tasks.judges.inside.signatures import (
    describe_fields,
    describe_signature,
    make_fields,
    make_signature,
)


def _special(names: str, *before: str) -> set[str]:
    return {f"__{start}{name}__" for name in names.split() for start in before or ("",)}


COMPARISONS = _special("eq ne lt le gt ge")
_ARITHMETIC = _special(
    "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and or xor", "", "r", "i"
)
OPERATORS = COMPARISONS | _ARITHMETIC  # with another object
# Methods that read an object, or that change it. It is asked nothing about a value that a test
# expects.
READS = _special(
    "call iter next reversed len getitem bool str repr format int float complex index abs round "
    "trunc floor ceil neg pos invert enter await aiter anext setattr setitem delitem"
)
GENERATOR = {"send", "throw", "close"}
_SPECIAL = OPERATORS | READS | GENERATOR | _special("contains exit hash get")
# Classes that an object may say that it is of, since a test asks for them.
_CLASSES = {kind.__name__: kind for kind in (FunctionType, GeneratorType)}


class Reference:
    """An object of the other interpreter. A subclass has the special methods of the object."""

    __slots__ = ("_classes", "_number", "_peer")

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Peer):
            return super().__new__(cls)
        # A test makes another object of this class, as in `type(x)(1)`.
        return vars(cls)["_home"].ask("__call__", cls, *args, **kwargs)

    def __init__(self, peer: "Peer", number: int, classes: list[int]) -> None:
        for name, value in (("_peer", peer), ("_number", number), ("_classes", {*classes, number})):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        return self._peer.read(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.use(self, "__setattr__", (name, value), {})

    def __eq__(self, other: object) -> bool:
        """Return whether this is the class of an object, as in `type(x) == Node`."""
        is_class = isinstance(other, type) and vars(other).get("_class") == self._number
        return True if is_class else NotImplemented

    __hash__ = object.__hash__

    def __dir__(self) -> Any:
        return self._peer.ask("dir", self)

    def __instancecheck__(self, other: Any) -> bool:
        return isinstance(other, Reference) and self._number in other._classes

    def __mro_entries__(self, _: Any) -> NoReturn:
        self._peer.miss(CLASS)
        raise TypeError("a class of the other interpreter is made there")

    def __copy__(self) -> Any:
        return self._peer.ask("copy", self)

    def __deepcopy__(self, _: Any) -> Any:
        return self._peer.ask("deepcopy", self)


class Waiting(Reference):
    """An object of the other interpreter that can be awaited; it is done at once."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._peer.use(self, "__await__", (), {})
        yield

    def send(self, _: Any) -> NoReturn:
        raise StopIteration(self._peer.use(self, "__await__", (), {}))

    def throw(self, kind: Any, value: Any = None, _: Any = None) -> NoReturn:
        raise kind if value is None else value

    def close(self) -> None:
        """Do nothing: it has not begun, or it is done."""


def _bind(function: Any, owner: Any, _: Any = None) -> Any:
    """Make a method of a function in a class of this interpreter."""
    return function if owner is None else MethodType(function, owner)


def _forward(method: str) -> Any:
    if method == "__get__":
        return _bind

    def special(self: Reference, *args: Any, **kwargs: Any) -> Any:
        return self._peer.use(self, method, args, kwargs)

    return special


class Peer:
    """This end of the conversation.

    Only one thread talks at a time. A subclass limits what the other end may do with objects of
    this end.

    Args:
        socket: number of the file.
    """

    def __init__(self, socket: int) -> None:
        self._reader, self._writer = (open(socket, mode) for mode in ("rb", "wb"))  # noqa: SIM115
        self._writing, self._asking = allocate_lock(), RLock()
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._references: dict[int, Any] = {}

    def do(self, method: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Use an object of this end for the other end."""
        match method:
            case "__getattr__":
                return getattr(target, *args)
            case "signature":
                return describe_signature(target)
            case "fields":
                return describe_fields(target)
            case "dir":
                return dir(target)
            case "__getitem__":  # of a class too
                return target[args[0]]
            case "copy" | "deepcopy":
                return getattr(copy, method)(target)
        return getattr(type(target), method)(target, *args, **kwargs)

    def ended(self) -> None:
        """End this interpreter, since the other end is gone."""
        raise NotImplementedError

    def flush(self) -> None:
        """Write what was printed, before an answer."""

    def receive_output(self, text: str) -> None:
        """Print what the other end printed."""

    def receive_answer(self, method: str, exchange: Exchange, first: int) -> None:
        """Keep the containers of an answer, from the first one, before they are used."""

    def keep_answer(self, method: str, exchange: Exchange, first: int) -> None:
        """Keep the containers of an own answer, from the first one."""

    def drop(self, number: int) -> None:
        """Forget the containers of an own answer."""

    def miss(self, reason: str) -> None:
        """Say to the tests that the sandbox does not carry something, see `carried.py`."""
        self.send(["miss", reason])

    # Calls

    def ask(self, method: str, target: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Let the other end do something; return or raise what came of it."""
        exchange = self._exchange()
        with self._asking:
            self.send(["call", method, exchange.pack([target, args, kwargs])])
            first = len(exchange.containers) + 1
            kind, data = self.answer()
        try:
            if kind == "raise":
                exchange = self._exchange()
            values = exchange.unpack(data)
            if kind == "return":
                self.receive_answer(method, exchange, first)
            result = values[0]
        except BaseException:  # noqa: BLE001 - nothing that this end could have asked for
            return self.ended()
        if kind == "raise":
            result.from_the_other = True  # also if it is an own error that comes back
            raise result
        return result

    def answer(self) -> Any:
        """Wait for the answer, and do what the other end asks for meanwhile."""
        while True:
            match self.receive():
                case ["print", str(text)]:
                    self.receive_output(text)
                case ["miss", str(reason)]:
                    self.miss(reason)
                case ["drop", int(number)]:
                    self.drop(number)
                case ["call", str(method), data]:
                    self.serve(method, data)
                case ["return" | "raise" as kind, data]:
                    return kind, data
                case _:
                    self.ended()

    def serve(self, method: str, data: Any) -> None:
        """Do what the other end asks for, and answer."""
        exchange = self._exchange()
        args, kwargs = [], {}
        try:
            target, args, kwargs = exchange.unpack(data)
            first = len(exchange.containers) + 1
            kind, value = "return", self.do(method, target, args, kwargs)
            reply = exchange.pack([value, args, kwargs])
            if exchange.is_reduced:
                self.miss(PLAIN)
            self.keep_answer(method, exchange, first)
        except BaseException as error:  # noqa: BLE001 - every error is an answer
            kind, reply = "raise", self._exchange().pack([error])
        self.flush()
        self.send([kind, reply])

    def send(self, message: Any) -> None:
        """Write a message: its length in 8 bytes, then JSON."""
        data = json.dumps(message).encode()
        with self._writing:
            self._writer.write(len(data).to_bytes(8, "big") + data)
            self._writer.flush()

    def receive(self) -> Any:
        """Read a message; end this interpreter if there is none."""
        length = int.from_bytes(self._reader.read(8), "big")
        data = self._reader.read(length)
        if not data or len(data) < length:
            self.ended()
        return json.loads(data)

    # Objects of the other end

    def read(self, reference: Reference, name: str) -> Any:
        """Return an attribute of the object."""
        if name == "__signature__":
            return make_signature(*self.ask("signature", reference))
        if name == "__dataclass_fields__":
            return make_fields(self.ask("fields", reference))
        return self.ask("__getattr__", reference, name)

    def use(self, reference: Reference, method: str, args: Any, kwargs: Any) -> Any:
        """Call a special method of the object."""
        return self.ask(method, reference, *args, **kwargs)

    # Packing of objects

    def _exchange(self) -> Exchange:
        return Exchange(self._pack, self._unpack, lambda kind: id(kind) in self._numbers)

    def _export(self, value: Any) -> int:
        """Return the number of an own object, which is kept from now on."""
        number = self._numbers.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects.append(value)
        return number

    def _pack(self, value: Any, pack: Any) -> Any:
        kind = type(value)
        if issubclass(kind, Reference):
            return ["yours", value._number]
        if (reference := find_reference(value)) is not None:
            return ["yours", reference._number]
        if issubclass(kind, BaseException):
            own, standard = self._ancestors(kind)
            fields = {**vars(value), **error_fields(value)}
            parts = [pack(part) for part in ([*value.args], fields, value.__cause__)]
            return ["error", own, standard, *parts, self._describe(value) if own else None]
        if issubclass(kind, type) and issubclass(value, BaseException):
            return ["errors", *self._ancestors(value)]
        if issubclass(kind, type) and issubclass(value, Reference) and "_class" in vars(value):
            return ["yours", vars(value)["_class"]]
        if kind is ModuleType:
            return ["module", value.__name__]
        return self._describe(value)

    def _describe(self, value: Any) -> list[Any]:
        """Return number, class and special methods of an own object."""
        kind = type(value)
        classes = type.mro(kind)[:-1]
        found = {name: own for parent in reversed(classes) for name, own in vars(parent).items()}
        left_out = (GENERATOR if kind is not GeneratorType else set()) | (
            {"__get__"} if kind is not FunctionType else set()
        )
        methods = [m for m in sorted(_SPECIAL - left_out) if found.get(m) is not None]
        if "__dataclass_fields__" in (vars(value) if kind is type else found):
            methods.append("__dataclass_fields__")
        if isinstance(value, type) and hasattr(value, "__class_getitem__"):
            methods.append("__getitem__")
        parents = [self._export(parent) for parent in classes]
        return ["object", self._export(value), kind.__name__, parents, methods]

    def _ancestors(self, kind: type) -> tuple[list[Any], list[Any]]:
        """Return the own classes of an error, and its first class that the other end knows."""
        own: list[Any] = []
        for parent in kind.__mro__:
            if (reference := find_reference(parent)) is not None:
                return own, ["yours", reference._number]
            module, name = parent.__module__, parent.__name__
            if is_standard(module) and getattr(sys.modules[module], name, None) is parent:
                return own, ["standard", module, name]
            own.append([self._export(parent), name])
        raise TypeError(f"{kind} is no error")

    def _unpack(self, data: Any, unpack: Any) -> Any:
        match data:
            case ["yours", int(number)]:
                return self._objects[number]
            case ["error", own, known, args, attributes, cause, origin]:
                kind = self._error_class(own, known)
                error = kind.__new__(kind, *unpack(args))
                # No `__dict__` or `__class__`, which change more than a field.
                given = unpack(attributes)
                names = [name for name in given if name[:2] != "__" or name == "__notes__"]
                fields = {**{name: given[name] for name in names}, "from_the_other": True}
                if cause is not None:
                    fields["__cause__"] = unpack(cause)
                if own:
                    fields["_origin"] = unpack(origin)
                for name, value in fields.items():
                    setattr(error, name, value)
                return error
            case ["errors", own, known]:
                return self._error_class(own, known)
            case ["module", str(name)] if is_standard(name):
                return import_module(name)
            case ["object", int(number), str(name), list(parents), list(methods)]:
                if number not in self._references:
                    self._references[number] = self._refer(number, name, parents, methods)
                return self._references[number]
        raise ValueError(f"expected a value but got {data!r}")

    def _refer(self, number: int, name: str, parents: list[int], methods: list[str]) -> Any:
        """Return a new reference with the special methods of its object."""
        own = {m: _forward(m) for m in methods if m in _SPECIAL and m != "__await__"}
        own.setdefault("__hash__", object.__hash__)
        for name_read in ("__doc__", *({"__dataclass_fields__"} & {*methods})):
            own[name_read] = property(lambda reference, read=name_read: self.read(reference, read))
        if name in _CLASSES:
            own["__class__"] = property(lambda _: _CLASSES[name])
        base = Waiting if "__await__" in methods else Reference
        own |= {"__slots__": (), "_class": next(iter(parents), None), "_home": self}
        kind = type(name, (base,), own)
        return kind(self, number, parents)

    def _error_class(self, own: list[Any], known: list[Any]) -> type[BaseException]:
        match known:
            case ["yours", int(number)]:
                kind = self._objects[number]
            case ["standard", str(module), str(name)] if is_standard(module):
                # An error of unittest would skip or end the tests.
                is_unittest = module.partition(".")[0] == "unittest"
                kind = Exception if is_unittest else getattr(import_module(module), name)
            case _:
                raise ValueError(f"expected a class of errors but got {known!r}")
        if not issubclass(kind, BaseException):
            raise TypeError(f"{kind} is no class of errors")
        for number, name in reversed(own):
            if number not in self._references:
                reference = self._refer(number, "type", [], ["__call__"])
                self._references[number] = error_class(name, kind, reference)
            kind = self._references[number]
        return kind
