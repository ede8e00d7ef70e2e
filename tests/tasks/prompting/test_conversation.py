"""Chat templates are programs: one that fails is refused before any model is read."""

import json
import signal
import time
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from prunelit import InputError
from prunelit.tasks import Generation


def prepare(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Generation:
    rows = [{"id": "a", "context": "One?", "choices": ["no", "yes"], "label": 1}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = Generation(str(folder / "rows.jsonl"))
    task.read()
    task.prepare(tokenizer)
    return task


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ raise_exception('no user') }}", r"fails \(no user\)"),
        ("{% for m in messages %}", r"fails \(Unexpected end of template"),
        ("{{ messages | no_such_filter }}", r"fails \(No filter named 'no_such_filter'"),
        ("{{ conversation.first }}", r"fails \('conversation' is undefined\)"),
        ("{{ messages[0].content + 1 }}", r"fails \(can only concatenate str"),
        ("{{ 1 / 0 }}", r"fails \(division by zero\)"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", r"fails \(maximum recursion"),
        ("", "needs a chat template but the tokenizer has none"),
        ("{{ conversation }}", "gives the same text for all messages"),
        ("{% if false %}{{ messages }}{% endif %}", "gives the same text for all messages"),
        ("Hello!", "gives the same text for all messages"),
        ("{{ messages[0].content }}\ud800", "writes half of a character: set `chat: false`"),
        (
            "{{ messages[0].content[1:2] | replace('n', '') }}",
            "Row 0 .counted from 0. of .* without a token",
        ),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(
    template: str, problem: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=problem) as caught:
        prepare(tokenizer, tmp_path)
    assert "`chat: false`" in str(caught.value)


def test_a_template_that_does_not_end_is_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "prunelit.tasks.prompting.conversation"
    monkeypatch.setattr(f"{module}._SECONDS", 0.2, raising=False)
    loop = "{% for i in range(99999) %}"
    tokenizer.chat_template = f"{loop}{loop}{'{% endfor %}' * 2}"
    start, handler = time.monotonic(), signal.getsignal(signal.SIGALRM)
    with pytest.raises(InputError, match=r"fails \(it does not end within 0\.2 seconds\)"):
        prepare(tokenizer, tmp_path)
    assert time.monotonic() - start < 5
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_template_that_changes_the_message_is_used(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.chat_template = "<{{ messages[0].content | upper }}>"
    task = prepare(tokenizer, tmp_path)
    assert tokenizer.decode(task.collate([0])["input_ids"][0]) == "<ONE?>"
