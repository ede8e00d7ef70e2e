"""One of two interpreters that talk over a socket: calls, their answers, and objects by number."""

import json
import sys
from _thread import RLock, allocate_lock
from importlib import import_module
from types import ModuleType
from typing import Any

from prunelit.tasks.judges.inside.plain import Exchange


def _special(names: str, *before: str) -> set[str]:
    return {f"__{start}{name}__" for name in names.split() for start in before or ("",)}


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


COMPARISONS = _special("eq ne lt le gt ge")
_ARITHMETIC = _special(
    "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and or xor", "", "r", "i"
)
OPERATORS = COMPARISONS | _ARITHMETIC  # with another object
# Methods that read an object. It learns nothing about the value that a test expects.
READS = _special(
    "call iter next reversed len getitem bool str repr format int float complex index abs round "
    "trunc floor ceil neg pos invert"
)
_SPECIAL = OPERATORS | READS | _special("contains setitem delitem enter exit hash")


class Reference:
    """An object of the other interpreter. A subclass has the special methods of the object."""

    __slots__ = ("_classes", "_number", "_peer")

    def __init__(self, peer: "Peer", number: int, classes: list[int]) -> None:
        for name, value in (("_peer", peer), ("_number", number), ("_classes", {*classes, number})):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        return self._peer.read(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.use(self, "__setattr__", (name, value), {})

    def __instancecheck__(self, other: Any) -> bool:
        return isinstance(other, Reference) and self._number in other._classes


def _forward(method: str) -> Any:
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
        if method == "__getattr__":
            return getattr(target, *args)
        return getattr(type(target), method)(target, *args, **kwargs)

    def ended(self) -> None:
        """End this interpreter, since the other end is gone."""
        raise NotImplementedError

    def flush(self) -> None:
        """Write what was printed, before an answer."""

    def receive_output(self, text: str) -> None:
        """Print what the other end printed."""

    # Calls

    def ask(self, method: str, target: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Let the other end do something; return or raise what came of it."""
        exchange = self._exchange()
        with self._asking:
            self.send(["call", method, exchange.pack([target, args, kwargs])])
            kind, data = self.answer()
        try:
            if kind == "raise":
                exchange = self._exchange()
            result, *_ = exchange.unpack(data)
        except BaseException:  # noqa: BLE001 - nothing that this end could have asked for
            return self.ended()
        if kind == "raise":
            raise result
        return result

    def answer(self) -> Any:
        """Wait for the answer, and do what the other end asks for meanwhile."""
        while True:
            match self.receive():
                case ["print", str(text)]:
                    self.receive_output(text)
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
            kind, value = "return", self.do(method, target, args, kwargs)
            reply = exchange.pack([value, args, kwargs])
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
        if issubclass(kind, BaseException):
            return ["error", self._ancestors(kind), pack(list(value.args)), pack(vars(value))]
        if issubclass(kind, type) and issubclass(value, BaseException):
            return ["errors", self._ancestors(value)]
        if kind is ModuleType:
            return ["module", value.__name__]
        parents = [self._export(parent) for parent in type.mro(kind)[:-1]]
        methods = [
            name
            for name in sorted(_SPECIAL)
            if getattr(kind, name, None) not in (None, getattr(object, name, None))
        ]
        return ["object", self._export(value), kind.__name__, parents, methods]

    def _ancestors(self, kind: type) -> list[Any]:
        """Return the own classes of an error, then the name of its first standard class."""
        found: list[Any] = []
        for parent in kind.__mro__:
            module, name = parent.__module__, parent.__name__
            if _is_standard(module) and getattr(sys.modules[module], name, None) is parent:
                return [*found, module, name]
            found.append([self._export(parent), name])
        raise TypeError(f"{kind} is no error")

    def _unpack(self, data: Any, unpack: Any) -> Any:
        match data:
            case ["yours", int(number)]:
                return self._objects[number]
            case ["error", ancestors, args, attributes]:
                kind = self._error_class(ancestors)
                error = kind.__new__(kind, *unpack(args))
                for name, value in {**unpack(attributes), "from_the_other": True}.items():
                    setattr(error, name, value)
                return error
            case ["errors", ancestors]:
                return self._error_class(ancestors)
            case ["module", str(name)] if _is_standard(name):
                return import_module(name)
            case ["object", int(number), str(name), list(parents), list(methods)]:
                if number not in self._references:
                    own = {m: _forward(m) for m in methods if m in _SPECIAL}
                    own.setdefault("__hash__", object.__hash__)
                    kind = type(name, (Reference,), {"__slots__": (), **own})
                    self._references[number] = kind(self, number, parents)
                return self._references[number]
        raise ValueError(f"expected a value but got {data!r}")

    def _error_class(self, ancestors: list[Any]) -> type[BaseException]:
        *own, module, standard = ancestors
        if module.partition(".")[0] == "unittest":  # such an error would skip or end the tests
            module, standard = "builtins", "Exception"
        kind = getattr(import_module(module), standard)
        if not (_is_standard(module) and issubclass(kind, BaseException)):
            raise TypeError(f"{module}.{standard} is no standard error")
        for number, name in reversed(own):
            kind = self._references.setdefault(number, type(name, (kind,), {}))
        return kind
