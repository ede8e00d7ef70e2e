"""Find the commit of a name on the Hugging Face hub, and explain why a name cannot be read."""

import functools
import os
import re
from collections.abc import Iterator
from typing import Literal

from datasets import config as datasets_config
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import HfApi, constants, get_token, is_offline_mode
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import httpx
from lightning.pytorch.utilities import rank_zero_info

from prunelit.errors import first_line

Kind = Literal["model", "dataset"]

# The hub could not be asked. Any other error of the transport breaks off an answer.
_NO_ANSWER = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)
# Neither the hub nor the cache has given it; `ConnectionError` is that of `datasets`.
_NOT_THERE = (LocalEntryNotFoundError, RevisionResolutionError, ConnectionError)
_LOGIN = "run `hf auth login` or set HF_TOKEN"
# Words of `huggingface_hub` for a file that is shorter than the hub said.
_SHORT = "Consistency check failed"


def resolve_commit(name: str, kind: Kind, revision: str | None = None) -> str:
    """Return the commit that a revision stands for now.

    Without an answer of the hub it is the commit of the last download, and a line says so. All
    files are then read at this commit, so they belong together even if the branch moves on.

    Args:
        name: of the repository.
        kind: of the repository.
        revision: branch, tag or commit; None is the default branch.

    Raises:
        Exception: one of `huggingface_hub` or of its transport, see `explain`.
    """
    offline = is_offline_mode()
    found = HfApi().resolve_revision(
        name, repo_type=kind, revision=revision, local_files_only=offline
    )
    if not offline:
        _answers(name, kind, found.resolved)
    return found.resolved


def is_cache_alone(name: str, kind: Kind, commit: str) -> bool:
    """Return True if a commit of `resolve_commit` can be read from the cache alone."""
    return is_offline_mode() or not _answers(name, kind, commit)


@functools.cache
def _answers(name: str, kind: Kind, commit: str) -> bool:
    """Check that the hub has a commit, which never changes; say so if the hub cannot be asked."""
    try:
        HfApi().repo_info(name, repo_type=kind, revision=commit)
    except (httpx.TransportError, HfHubHTTPError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise
        rank_zero_info(
            f"The hub {constants.ENDPOINT} gives no answer ({type(error).__name__}): {name!r} is "
            f"read from the cache, as it was at the commit {commit}."
        )
        return False
    return True


def explain(error: BaseException, name: str, kind: Kind, revision: str | None = None) -> str:
    """Say in one line why a name on the hub cannot be read, and what to do next.

    Args:
        error: that a library raised.
        name: of the repository.
        kind: of the repository.
        revision: that was asked for.

    Returns:
        Words that go on after "on the hub: ", without a token or a password.
    """
    chain = list(_chain(error))
    asked: tuple[str, Kind, str | None] = (name, kind, revision)
    found = next((words for one in chain if (words := _answer(one, *asked))), None)
    if found is None and kind == "dataset" and not is_offline_mode():
        found = _refused(*asked)  # `datasets` drops the error of the hub
    if found is None:
        found = next((words for one in chain if (words := _silence(one, *asked))), None)
    return _without_secrets(found or first_line(error.__cause__ or error).rstrip("."))


def hub_reason(error: BaseException) -> str | None:
    """Return the first line of an error that came from the hub; None for any other error."""
    kinds = (HfHubHTTPError, httpx.TransportError, DatasetNotFoundError, *_NOT_THERE)
    if any(isinstance(one, kinds) for one in _chain(error)):
        return _without_secrets(first_line(error).rstrip("."))
    return None


def _answer(error: BaseException, name: str, kind: Kind, revision: str | None) -> str | None:
    """Explain an answer of the hub, or why it was not asked; None for any other error."""
    if isinstance(error, UnicodeEncodeError):  # of the header that carries it
        return f"your token holds a letter that no token has; {_LOGIN} anew"
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    if not isinstance(error, HfHubHTTPError) or isinstance(error, EntryNotFoundError):
        return None
    if isinstance(error, GatedRepoError):
        return f"it is gated; accept its terms at {page}, then {_LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        what = "data set" if kind == "dataset" else "model"
        return (
            f"there is no {what} of this name, or it is private; check {page}, and run "
            "`hf auth login` or set HF_TOKEN if it is private"
        )
    if isinstance(error, RevisionNotFoundError):
        asked = revision or constants.DEFAULT_REVISION
        return f"it has no revision {asked!r}; name a branch, tag or commit that {page} lists"
    if isinstance(error, DisabledRepoError):
        return f"it is disabled, see {page}; use another one"
    status = error.response.status_code
    if status in (401, 403):
        return f"your token is refused (status {status}); {_LOGIN} anew"
    if status == 429:
        return "there were too many requests (status 429); wait a while and run again"
    if status >= 500:
        return f"the hub has a fault (status {status}); run again later"
    return None


def _silence(error: BaseException, name: str, kind: Kind, revision: str | None) -> str | None:
    """Explain that there was no answer, or not all of it; None for any other error."""
    reason = f"{type(error).__name__}: {first_line(error).rstrip('.')}"
    if isinstance(error, _NO_ANSWER):
        return (
            f"{constants.ENDPOINT} cannot be reached ({reason}); check the network and run again, "
            f"or name a local {'folder' if kind == 'model' else 'file'}; HF_HUB_OFFLINE=1 reads "
            "the cache alone"
        )
    if isinstance(error, httpx.TransportError) or _SHORT in str(error):
        return f"the connection broke off ({reason}); run again, complete files are kept"
    variable = _offline_by(kind)
    if variable is None or not isinstance(error, _NOT_THERE):
        return None
    at = "" if revision is None else f" at the revision {revision!r}"
    step = "unset it for one run, which fills the cache, or name a local file"
    if kind == "model":
        option = "" if revision is None else f" --revision {revision}"
        step = (
            f"unset it, run `hf download {name}{option}` where there is a network, or name a local "
            "folder"
        )
    return f"{variable} is set, and it is not in the cache{at}; {step}"


def _offline_by(kind: Kind) -> str | None:
    """Return the variable that keeps the libraries from asking the hub; None if none does."""
    if is_offline_mode():
        names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        return next((name for name in names if os.environ.get(name)), names[0])
    own = kind == "dataset" and datasets_config.HF_HUB_OFFLINE
    return "HF_DATASETS_OFFLINE" if own else None


def _refused(name: str, kind: Kind, revision: str | None) -> str | None:
    """Ask the hub if this user may read a repository; None if so."""
    try:
        HfApi().auth_check(name, repo_type=kind)
    except (HfHubHTTPError, httpx.TransportError) as error:
        return _answer(error, name, kind, revision)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """List an error and those that it was raised for."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _without_secrets(text: str) -> str:
    """Hide the user's token, and a password in an address."""
    if token := get_token():
        text = text.replace(token, "***")
    return re.sub(r"//[^/@\s]+@", "//***@", text)
