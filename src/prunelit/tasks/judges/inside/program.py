"""The interpreter of the program: it runs the program, then does what the tests ask for."""

import io
import os
import sys
import traceback
from functools import cached_property
from types import ModuleType
from typing import Any, NoReturn

from prunelit.tasks.judges.inside.carried import FILES
from prunelit.tasks.judges.inside.peer import Peer
from prunelit.tasks.judges.inside.plain import Exchange, held
from prunelit.tasks.judges.inside.shares import Share, Shares


class Printed(io.RawIOBase):
    """Output that the tests print, so that they can catch it."""

    def __init__(self, peer: Peer) -> None:
        super().__init__()
        self._peer = peer

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._peer.send(["print", bytes(data).decode(errors="replace")])
        return len(data)


class Program(Peer):
    """The end of the program. Its tests may do everything with its objects.

    Args:
        socket: see `Peer`.
    """

    def __init__(self, socket: int) -> None:
        super().__init__(socket)
        # Not `__main__`: a program is judged by its functions, not by what it does as a script.
        self.module = ModuleType("program")
        sys.modules["program"] = sys.modules["__main__"] = self.module
        self._shares = Shares(Share)
        self.output = io.TextIOWrapper(io.BufferedWriter(Printed(self)), "utf-8", "replace")
        sys.stdin, sys.stdout = io.StringIO(), self.output

    def flush(self) -> None:
        if not self.output.closed:
            self.output.flush()

    def keep_answer(self, method: str, exchange: Exchange, first: int) -> None:
        self._shares.add(method, exchange, first)

    def drop(self, number: int) -> None:
        self._shares.drop(number)

    def ended(self) -> NoReturn:
        os._exit(0)

    def do(self, method: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        try:
            return self._do(method, target, args, kwargs)
        except OSError as error:
            if str(error.filename).startswith("/"):
                self.miss(FILES)
            raise

    def _do(self, method: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        match method:
            case "load":
                return self.load(*args)
            case "classes":
                found = [vars(self.module).get(name) for name in args[0]]
                return [value if isinstance(value, type) else None for value in found]
            case "look up":
                return vars(self.module)[args[0]]
            case "assign":
                return setattr(self.module, *args)
            case "delete":
                return delattr(self.module, *args)
            case "share":
                return self._shares[args[0]].pack()
            case "write back":
                return self._shares[args[0]].take(args[1])
            case "held":
                return held(target)
            case "__await__":
                return self.loop.run_until_complete(_wait(target))
        return super().do(method, target, args, kwargs)

    @cached_property
    def loop(self) -> Any:
        """In which all that the tests await is done."""
        import asyncio  # slow, and seldom needed

        return asyncio.new_event_loop()

    def load(self, code: str) -> None:
        """Run the program itself."""
        try:
            exec(compile(code.encode(errors="replace"), "<program>", "exec"), vars(self.module))
        except BaseException:
            traceback.print_exc()
            raise


async def _wait(target: Any) -> Any:
    return await target


def main() -> None:
    """Answer until the tests have ended."""
    Program(0).answer()
