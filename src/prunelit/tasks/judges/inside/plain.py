"""Values as plain data, which can be read without running any code of the sender.

A value is JSON. None, booleans, strings, finite and other floats and most integers stand for
themselves; a list says what it is by its first item. An object of a class that is not known here is
not sent: both interpreters number such objects, see `peer.py`.
"""

from array import array
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from operator import attrgetter
from typing import Any

# How to fill an empty container with the items that were sent, pairs for dictionaries.
_FILL: dict[type, Callable[[Any, Any], None]] = {
    list: list.extend,
    dict: dict.update,
    set: set.update,
    bytearray: bytearray.extend,
    array: array.extend,
    deque: deque.extend,
    OrderedDict: OrderedDict.update,
    Counter: dict.update,
    defaultdict: dict.update,
}
# How to make it empty, from the attribute that its class has beside the items.
_ATTRIBUTE: dict[type, Callable[[Any], Any]] = {
    array: attrgetter("typecode"),
    deque: attrgetter("maxlen"),
    defaultdict: attrgetter("default_factory"),
}
_EMPTY: dict[type, Callable[[Any], Any]] = {
    array: array,
    deque: lambda length: deque(maxlen=length),
    defaultdict: defaultdict,
}
_FROZEN: dict[type, Callable[[Any], Any]] = {tuple: tuple, frozenset: frozenset}
_VIEWS: dict[type, Callable[[Any], Any]] = {
    type({}.keys()): lambda items: dict.fromkeys(items).keys(),
    type({}.items()): lambda items: dict(items).items(),
    type({}.values()): lambda items: dict(enumerate(items)).values(),
}
_MAKERS = {kind.__name__: make for kind, make in (_FROZEN | _VIEWS).items()}
_CONTAINERS = {kind.__name__: kind for kind in _FILL}

# Classes by their full name, and the arguments that make an equal object.
_MADE: dict[str, Callable[[Any], list[Any]]] = {
    "builtins.complex": lambda value: [value.real, value.imag],
    "builtins.bytes": lambda value: [list(value)],
    "builtins.range": lambda value: [value.start, value.stop, value.step],
    "builtins.slice": lambda value: [value.start, value.stop, value.step],
    "re.Pattern": lambda value: [value.pattern, value.flags],
    "uuid.UUID": lambda value: [str(value)],
    "pathlib.PosixPath": lambda value: [str(value)],
    "pathlib.PurePosixPath": lambda value: [str(value)],
    "time.struct_time": lambda value: [tuple(value)],
    "fractions.Fraction": lambda value: [value.numerator, value.denominator],
    "decimal.Decimal": lambda value: [str(value)],
    "datetime.timedelta": lambda value: [value.days, value.seconds, value.microseconds],
    "datetime.timezone": lambda value: list(value.__getinitargs__()),
    "zoneinfo.ZoneInfo": lambda value: [value.key],
    "datetime.date": lambda value: [value.year, value.month, value.day],
    "datetime.time": lambda value: [
        *(value.hour, value.minute, value.second, value.microsecond, value.tzinfo)
    ],
    "datetime.datetime": lambda value: [
        *(value.year, value.month, value.day),
        *(value.hour, value.minute, value.second, value.microsecond, value.tzinfo),
    ],
}

_FUNCTIONS = {"re.Pattern": "re.compile"}  # where the class itself makes nothing

# A subclass of these, such as an `IntEnum`, is sent as the value that it holds.
_BASES: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    list: lambda value: [*list.__iter__(value)],
    tuple: lambda value: tuple(tuple.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
}
_CONSTANTS: dict[str, Any] = {"Ellipsis": ..., "NotImplemented": NotImplemented} | {
    kind.__name__: kind
    for kind in (
        *(type(None), bool, int, float, complex, str, bytes, bytearray),
        *(list, tuple, dict, set, frozenset, range),
    )
}


@lru_cache
def _named_tuple(name: str, fields: tuple[str, ...]) -> Any:
    return namedtuple(name, fields, rename=True)


def held(value: Any) -> Any:
    """Return the plain value that an object holds, by its class; or the object itself."""
    base = next((base for base in type(value).__mro__ if base in _BASES), None)
    return _BASES[base](value) if base else value


def _has_methods(kind: type) -> bool:
    """Return whether a class of named tuples has more than its fields."""
    own = {
        name: value
        for parent in kind.__mro__
        if parent not in (tuple, object)
        for name, value in vars(parent).items()
    }
    names = own.keys() - vars(_named_tuple("Plain", ())).keys() - {*getattr(kind, "_fields", ())}
    names -= {"__dict__", "__weakref__"}
    return any(hasattr(own[name], "__get__") for name in names)


class Exchange:
    """A call and its answer. A container that occurs in both stays the same one, changed in place.

    Args:
        pack_object: makes data of an object that has no plain value.
        unpack_object: the reverse.
        is_object: says of a class that its objects are never sent as plain values.
    """

    def __init__(
        self,
        pack_object: Callable[[Any, Callable[[Any], Any]], Any],
        unpack_object: Callable[[Any, Callable[[Any], Any]], Any],
        is_object: Callable[[type], bool],
    ) -> None:
        self.pack_object, self.unpack_object = pack_object, unpack_object
        self.is_object = is_object
        self.containers: list[Any] = []
        self.is_reduced = False  # an object came as a plain value, without its methods

    def pack(self, value: Any) -> Any:
        """Return a value as JSON."""
        numbers = {id(container): number for number, container in enumerate(self.containers)}
        sent: set[int] = set()

        def pack(value: Any) -> Any:
            kind = type(value)
            if value is None or kind in (bool, str, float):
                return value
            if kind is int:  # JSON limits the digits
                return value if abs(value) < 1 << 60 else ["int", hex(value)]
            if kind in _FILL:
                number = numbers.setdefault(id(value), len(numbers))
                if number in sent:
                    return ["same", number]
                sent.add(number)
                if number == len(self.containers):
                    self.containers.append(value)
                items = kind.items(value) if issubclass(kind, dict) else value
                rest = [pack(_ATTRIBUTE[kind](value))] if kind in _ATTRIBUTE else []
                return [kind.__name__, number, [pack(item) for item in items], *rest]
            if kind in _FROZEN or kind in _VIEWS:
                return [kind.__name__, [pack(item) for item in value]]
            name = f"{kind.__module__.partition('._')[0]}.{kind.__qualname__}"
            if name in _MADE:
                fold = [1] if getattr(value, "fold", 0) else []  # the second of two equal times
                return ["made", name, [pack(part) for part in _MADE[name](value)], *fold]
            if issubclass(kind, tuple) and hasattr(kind, "_fields") and not self.is_object(kind):
                self.is_reduced |= _has_methods(kind)
                items = [pack(item) for item in held(value)]
                return ["named", kind.__name__, [*getattr(kind, "_fields")], items]  # noqa: B009
            if not self.is_object(kind) and (plain := held(value)) is not value:
                self.is_reduced = True
                return pack(plain)
            for constant, known in _CONSTANTS.items():
                if value is known:
                    return ["constant", constant]
            return self.pack_object(value, pack)

        return pack(value)

    def unpack(self, data: Any) -> Any:
        """Return the value of JSON."""
        if not isinstance(data, list):
            return data
        match data:
            case ["int", digits]:
                return int(digits, 16)
            case ["constant", name]:
                return _CONSTANTS[name]
            case ["same", number]:
                return self.containers[number]
            case ["made", name, parts, *fold] if name in _MADE:
                module, _, kind = _FUNCTIONS.get(str(name), str(name)).partition(".")
                made = getattr(import_module(module), kind)(*map(self.unpack, parts))
                return made.replace(fold=1) if fold else made
            case ["named", str(name), list(fields), list(items)]:
                return _named_tuple(name, tuple(fields))(*map(self.unpack, items))
            case [kind, items] if kind in _MAKERS:
                return _MAKERS[kind]([self.unpack(item) for item in items])
            case [kind, number, items, *rest] if kind in _CONTAINERS:
                return self._fill(_CONTAINERS[kind], number, items, rest)
        return self.unpack_object(data, self.unpack)

    def _fill(self, kind: type, number: int, items: list[Any], rest: list[Any]) -> Any:
        """Fill a new container, or the one that has this number already."""
        if number == len(self.containers):
            self.containers.append(_EMPTY.get(kind, kind)(*map(self.unpack, rest)))
        container = self.containers[number]
        if type(container) is not kind:
            raise TypeError(f"container {number} was a {type(container).__name__}")
        values = [self.unpack(item) for item in items]
        if kind is array:
            del container[:]
        else:
            container.clear()
        _FILL[kind](container, values)
        return container
