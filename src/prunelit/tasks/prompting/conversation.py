"""Put messages into the chat template of a tokenizer."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers import PreTrainedTokenizerBase

from prunelit.errors import InputError, first_line
from prunelit.files import is_text

_SECONDS = 10.0  # for one conversation; a template takes less than a millisecond
_LONGEST = 100_000_000  # characters of one conversation
_HINT = "set `chat: false` and a `template`, or use the tokenizer's own chat template."


def check_chat(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer whose chat template is missing or leaves the messages out.

    Args:
        tokenizer: of the model.
        name: of the task, for the error.

    Raises:
        InputError: as `fill_chat`.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"The task {name!r} needs a chat template but the tokenizer has none: set "
            "`chat: false` and a `template`."
        )
    if fill_chat(tokenizer, ["one"]) == fill_chat(tokenizer, ["other"]):
        raise InputError(
            f"The chat template of the tokenizer gives the same text for all messages: {_HINT}"
        )


def fill_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[str]) -> str:
    """Put messages into the chat template, followed by the start of the model's answer.

    Args:
        tokenizer: of the model.
        messages: of user and model in turn; the first and the last are the user's.

    Raises:
        InputError: if the template cannot be parsed, fails, does not end in time, or writes what is
            no text.
    """
    roles = ("user", "assistant")
    turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(messages)]
    try:
        with _time_limit():
            prompt = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
    # A template is a program: it can raise anything.
    except Exception as error:
        raise InputError(
            f"The chat template of the tokenizer fails ({first_line(error)}): {_HINT}"
        ) from error
    assert isinstance(prompt, str)
    if len(prompt) > _LONGEST:
        raise InputError(
            f"The chat template of the tokenizer writes {len(prompt)} characters for one "
            f"conversation: {_HINT}"
        )
    if not is_text(prompt) and all(map(is_text, messages)):
        raise InputError(f"The chat template of the tokenizer writes half of a character: {_HINT}")
    return prompt


@contextmanager
def _time_limit() -> Iterator[None]:
    """Raise `TimeoutError` in code that does not end. Only the main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"it does not end within {_SECONDS:g} seconds")

    handler = signal.signal(signal.SIGALRM, stop)
    before = signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, handler)
