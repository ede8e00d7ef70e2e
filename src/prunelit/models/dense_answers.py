"""Keep on disk what the dense model gave, so that another run does not measure it again."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import platform
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints
from weakref import WeakKeyDictionary

import safetensors.torch
import torch
import torch.distributed as dist
import transformers
from lightning.pytorch.utilities import rank_zero_info
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.data.vocabularies import tokenizer_content
from prunelit.errors import InputError, first_line
from prunelit.files import readable, replace_file
from prunelit.models.architecture import decoder_blocks
from prunelit.models.fingerprint import content_of, fingerprint, quick_state
from prunelit.models.gguf import cache_folder
from prunelit.models.parallel import gather
from prunelit.models.stores import is_shared, one_at_a_time
from prunelit.recipe import describe_code

Answer = TypeVar("Answer")

_ALONE, _CHECKSUM = "value", "sha256"  # names of tensors in a file
_RESERVE = 2 << 30  # bytes of the disk that stay free
# What `quick_state` gave when a model was hashed, and the hash.
_FINGERPRINTS: WeakKeyDictionary[PreTrainedModel, tuple[list[Any], str]] = WeakKeyDictionary()


class DenseAnswers:
    """Answers of one model, each in a file whose name is a hash of all that determines it.

    That is the content of the model, the function and all its arguments, tokens with their padding
    and batch included, the numerics, the device, the number of threads, and the code of prunelit
    and the versions of its libraries. So an answer is read back bit for bit, and never that of
    another model. A file has a checksum: one that is damaged is measured again.

    A cache that cannot be written ends no run. Files are never removed: `tell` names the folder and
    its size.

    Args:
        model: the dense model, whose weights do not change.
        folder: of the files of all models. Each model has its own in it.

    Attributes:
        tasks: names of the tasks that ask now.
        counts: answers that were read and that were measured, by the name of a task.
    """

    def __init__(self, model: PreTrainedModel, folder: str | Path) -> None:
        self.model = model
        self.tasks: Sequence[str] = [""]
        self.counts: dict[str, tuple[int, int]] = {}
        self._root = Path(folder)
        self._tokenizers: dict[int, str] = {}
        self._told: set[str] = set()
        self._full = False
        self._lock = threading.Lock()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the weights of the model, see `known_fingerprint`."""
        return known_fingerprint(self.model)

    @functools.cached_property
    def _identity(self) -> str:
        code = describe_code(type(self.model))
        return hashlib.sha256(json.dumps([self.fingerprint, code]).encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """Folder of the model's answers; removing it empties the cache of this model."""
        return self._root / self._identity[:16]

    def ask(
        self,
        function: Callable[..., Answer],
        inputs: Sequence[Any],
        settings: Mapping[str, Any],
        memo: Mapping[str, Any],
        model: PreTrainedModel | None = None,
    ) -> Answer:
        """Read the answer of a function of the model from disk, or else compute and store it.

        Args:
            function: returns a tensor, a mapping of tensors, or a dataclass of tensors, and says so
                in its annotation. Its first argument is the model.
            inputs: its further arguments: tensors, tokenizers, plain data, and containers and
                dataclasses of these.
            settings: its arguments by name, of the same kinds.
            memo: arguments by name that change no value, such as a `SharedPrefix`.
            model: a view of the dense model, which is asked in its place; None asks itself.
        """
        key = self.key(function, inputs, settings)
        known = self.find(key)
        if not all(gather(self.model, known is not None)):  # all ranks read it, or all compute it
            known = None
        for task in self.tasks:
            read, measured = self.counts.get(task, (0, 0))
            self.counts[task] = read + (known is not None), measured + (known is None)
        if known is not None:
            device = self.model.device
            return _as_answer(function, {name: x.to(device) for name, x in known.items()})
        answer = function(model or self.model, *inputs, **settings, **memo)
        # The layout in memory is that of an answer from disk.
        tensors = {name: x.detach().contiguous() for name, x in _as_tensors(answer).items()}
        self.keep(key, tensors)
        return _as_answer(function, tensors)

    def tell(self) -> None:
        """Say how many tasks read their answers, of all processes, and what the cache takes now.

        Every process must call it.
        """
        every: list[Any] = [self.counts]
        if dist.is_available() and dist.is_initialized():
            every = [None] * dist.get_world_size()
            dist.all_gather_object(every, self.counts)
        found: dict[str, tuple[int, int]] = {}
        for counts in every:
            for task, (read, measured) in counts.items():
                before = found.get(task, (0, 0))
                found[task] = before[0] + read, before[1] + measured
        whole = sum(not measured for _, measured in found.values())
        some = sum(bool(read and measured) for read, measured in found.values())
        if whole + some:
            more = f", and some of {some} more," if some else ""
            rank_zero_info(
                f"Dense answers of {whole} of {len(found)} tasks{more} were read from "
                f"{str(self.folder)!r}: `--model.dense_cache false` measures them again."
            )
        if any(measured for _, measured in found.values()) and (size := _size(self._root)):
            rank_zero_info(
                f"What dense models gave takes {readable(size)} in {str(self._root)!r}, which can "
                "be removed at any time."
            )

    def key(
        self, function: Callable[..., Any], inputs: Sequence[Any], settings: Mapping[str, Any]
    ) -> str:
        """Hash all that determines an answer; the arguments are those of `ask`."""
        name = f"{function.__module__}.{function.__qualname__}"
        device = self.model.device
        around = {**_versions(), **_numerics(device.type), **describe_code(function)}
        digest = hashlib.sha256()
        with one_at_a_time(self._lock):
            identity = self._identity
        self._feed(digest, [identity, name, around, list(inputs), dict(settings)])
        return digest.hexdigest()[:32]

    def _feed(self, digest: Any, value: Any) -> None:
        """Add a value to a hash, with its type and size, so that different values differ."""
        if isinstance(value, Tensor):
            digest.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(content_of(value))
        elif isinstance(value, PreTrainedTokenizerBase):
            digest.update(self._tokenizer(value).encode())
        elif dataclasses.is_dataclass(value):
            parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            self._feed(digest, [type(value).__qualname__, parts])
        elif isinstance(value, Mapping):
            digest.update(f"mapping {len(value)} ".encode())
            for key in sorted(value):
                self._feed(digest, [key, value[key]])
        elif isinstance(value, list | tuple):
            digest.update(f"list {len(value)} ".encode())
            for part in value:
                self._feed(digest, part)
        elif value is None or isinstance(value, str | int | float):
            text = json.dumps(value)
            digest.update(f"{type(value).__name__} {len(text)} {text} ".encode())
        else:
            raise TypeError(f"A {type(value).__name__} cannot be a part of what is asked.")

    def _tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> str:
        if id(tokenizer) not in self._tokenizers:
            content = {**tokenizer_content(tokenizer), **describe_code(type(tokenizer))}
            text = json.dumps(content, sort_keys=True)
            self._tokenizers[id(tokenizer)] = hashlib.sha256(text.encode()).hexdigest()
        return self._tokenizers[id(tokenizer)]

    def find(self, key: str) -> dict[str, Tensor] | None:
        """Read the tensors of an answer; None if there is none, or if it is damaged.

        Args:
            key: see `key`.
        """
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        try:
            tensors = safetensors.torch.load(content)
            whole = torch.equal(tensors.pop(_CHECKSUM), _checksum(key, tensors))
        except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError):
            whole, tensors = False, {}
        if not whole:
            self._tell(
                "damaged",
                f"{str(path)!r}, which the dense model gave, is damaged: this answer, and that of "
                "any other damaged file, is measured again.",
            )
            return None
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def keep(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of an answer, unless the disk is full.

        Args:
            key: see `key`.
            tensors: by name.
        """
        if self._full:
            return
        own = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
        path, size = self._path(key), sum(tensor.nbytes for tensor in own.values())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < size + _RESERVE:
                raise OSError("less than 2 GB of the disk would stay free")
            with replace_file(path, shared=True) as partial:
                safetensors.torch.save_file({**own, _CHECKSUM: _checksum(key, own)}, partial)
        except (OSError, SafetensorError, InputError) as error:
            self._full = True
            self._tell(
                "full",
                f"No more of what the dense model gives is kept in {str(self._root)!r}: "
                f"{first_line(error)}.",
            )

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _tell(self, what: str, sentence: str) -> None:
        if what not in self._told:
            rank_zero_info(sentence)
        self._told.add(what)


def known_fingerprint(model: PreTrainedModel) -> str:
    """Hash the weights of a model.

    It takes about a second per gigabyte, once for a model that does not change: the variants of a
    sweep share their dense model. Ranks that share the blocks call it together.

    Args:
        model: any.
    """
    state = quick_state(model)
    known = _FINGERPRINTS.get(model)
    if known is None or known[0] != state:
        known = _FINGERPRINTS[model] = state, fingerprint(model)
    return known[1]


def open_answers(model: PreTrainedModel | None) -> DenseAnswers | None:
    """Open the answers of a dense model in the folder `dense` of the cache.

    Args:
        model: None if the run keeps no dense model.

    Returns:
        None without a dense model, or if the cache cannot be written, which is said.
    """
    if model is None:
        return None
    if is_shared(decoder_blocks(model)[1]):
        known_fingerprint(model)  # on all ranks: one of them may have no batch that asks for it
    try:
        return DenseAnswers(model, cache_folder() / "dense")
    except InputError as error:
        rank_zero_info(f"{error} What the dense model gives is not kept.")
        return None


def _size(folder: Path) -> int:
    """Return the bytes of all answers in a folder; those that vanish meanwhile do not count."""
    size = 0
    for path in folder.glob("*/*.safetensors"):
        with contextlib.suppress(OSError):
            size += path.stat().st_size
    return size


def _as_tensors(answer: Any) -> dict[str, Tensor]:
    if isinstance(answer, Tensor):
        return {_ALONE: answer}
    return dict(answer if isinstance(answer, Mapping) else vars(answer))


def _as_answer(function: Callable[..., Any], tensors: dict[str, Tensor]) -> Any:
    kind: Any = get_type_hints(function)["return"]
    if kind is Tensor:
        return tensors[_ALONE]
    return tensors if get_origin(kind) else kind(**tensors)


def _checksum(key: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Hash the tensors of a file with its key, (32,)."""
    digest = hashlib.sha256(key.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)} ".encode())
        digest.update(content_of(tensors[name]))
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


@functools.cache
def _versions() -> dict[str, str]:
    """Return the versions of the libraries, and a hash of the code of prunelit."""
    room = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(room.rglob("*.py")):
        digest.update(f"{path.relative_to(room)} ".encode() + path.read_bytes())
    return {
        "prunelit": version("prunelit"),
        "code": digest.hexdigest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _numerics(device: str) -> dict[str, Any]:
    """Return what the last bits of a result depend on beside the inputs."""
    cuda = device == "cuda"
    return {
        "device": [device, torch.cuda.get_device_name() if cuda else platform.machine()],
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "autocast": str(torch.get_autocast_dtype(device))
        if torch.is_autocast_enabled(device)
        else None,
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "default": str(torch.get_default_dtype()),
        "attention": [
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ],
        "mkldnn": torch.backends.mkldnn.enabled,  # type: ignore[attr-defined]
    }
