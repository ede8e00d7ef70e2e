"""Errors of the hub in words; `tests/hub` asks a hub by the real clients."""

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from prunelit.data import hub
from prunelit.data.hub import explain, hub_reason


def answer(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    request = httpx.Request("GET", "https://hub/api")
    return kind("no", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (answer(GatedRepoError, 403), "it is gated; accept its terms at "),
        (answer(RepositoryNotFoundError, 404), "there is no model of this name, or it is private"),
        (answer(RevisionNotFoundError, 404), "it has no revision 'v9'; name a branch, tag"),
        (answer(HfHubHTTPError, 401), "your token is refused (status 401); run `hf auth login`"),
        (answer(HfHubHTTPError, 429), "there were too many requests (status 429); wait a while"),
        (answer(HfHubHTTPError, 503), "the hub has a fault (status 503); run again later"),
        (httpx.ConnectError("no route"), "cannot be reached (ConnectError: no route); check the"),
        (httpx.ReadError("cut"), "the connection broke off (ReadError: cut); run again, complete"),
        (OSError("Consistency check failed: 3"), "the connection broke off (OSError: Consistency"),
        (ValueError("strange.\nmore"), "strange"),
    ],
)
def test_each_answer_has_its_next_step(error: Exception, words: str) -> None:
    outer = RuntimeError("could not load")
    outer.__cause__ = error
    assert words in explain(outer, "org/name", "model", "v9")
    from_hub = isinstance(error, HfHubHTTPError | httpx.TransportError)
    assert hub_reason(outer) == ("could not load" if from_hub else None)


def test_an_empty_cache_offline_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "is_offline_mode", lambda: True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = explain(LocalEntryNotFoundError("none"), "org/name", "model", "v1")
    assert found.startswith("HF_HUB_OFFLINE is set, and it is not in the cache at the revision")
    assert "run `hf download org/name --revision v1`" in found


def test_no_token_and_no_password_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: "hf_secret")
    error = ValueError("hf_secret at https://me:word@proxy/ failed")
    assert explain(error, "org/name", "model") == "*** at https://***@proxy/ failed"
