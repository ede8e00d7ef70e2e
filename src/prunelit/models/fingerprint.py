"""Identify a model by its content, independent of its name and folder."""

import hashlib
import json
import os
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.parallel import gather
from prunelit.models.stores import each_weight, store_of

# Files of a model folder that decide what it computes and what its tokenizer does.
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_OTHERS = (
    *("config.json", "generation_config.json", "adapter_config.json", "*.index.json", "*.py"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.jinja"),
    *("*processor_config.json", "vocab*", "merges.txt", "tekken.json", "*.model", "*.tiktoken"),
    "additional_chat_templates/*.jinja",
)
# A tensor is read whole up to this number of bytes. From a larger one blocks are read.
_WHOLE = 1 << 20
_BLOCK = 4096
_FEWEST_BLOCKS = 64
_SAMPLE = 256  # values of a tensor

# Entries of a configuration that do not change what the model computes.
_IRRELEVANT = ("_name_or_path", "transformers_version")


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 of weights, structure, configuration, attention kernel and end-of-text tokens.

    It reads every weight, which takes about a second per GB. Of a model that several ranks compute
    together each hashes its part; the hash depends on their number, as the last bits of outputs do.

    Args:
        model: on any device; the device does not change the result.
    """
    digest = hashlib.sha256()
    for part in _structure(model):
        digest.update(part.encode())
    for name, tensor in chain(each_weight(model), model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for part in stored_parts(tensor):
            digest.update(content_of(part))
    first, *others = gather(model, digest.hexdigest())
    return hashlib.sha256("".join([first, *others]).encode()).hexdigest() if others else first


def quick_state(model: PreTrainedModel) -> list[Any]:
    """Return what shows in milliseconds that a model in memory was changed.

    That is all that `fingerprint` covers, but of each tensor its place in memory, the version that
    PyTorch counts up at every change in place, and some values. A change through `.data` is the
    only one that is not counted, and pruning or training so changes some of the values. Weights
    that wait in a store change when they are taken there.

    Args:
        model: on any device.
    """
    found: list[Any] = [*_structure(model)]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        store = store_of(model.get_submodule(name.rpartition(".")[0]))
        if store is not None and isinstance(tensor, nn.Parameter):
            found.append((name, id(store), tensor.dtype, store.edits))
            continue
        found += [(name, *state) for state in tensor_state(tensor)]
    return found


def tensor_state(tensor: Tensor) -> list[tuple[Any, ...]]:
    """Return what shows that a tensor in memory was changed, see `quick_state`.

    Args:
        tensor: on any device.
    """
    found = []
    for part in stored_parts(tensor):
        version = None if part.is_inference() else part._version
        flat = part.detach().flatten()
        sample = content_of(flat[:: max(1, flat.numel() // _SAMPLE)])
        found.append((part.data_ptr(), part.dtype, version, bytes(sample)))
    return found


def _structure(model: PreTrainedModel) -> tuple[str, str]:
    """Return all that decides the output beside the weights."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in _IRRELEVANT}
    ends = model.generation_config.eos_token_id if model.generation_config else None
    # The structure shows modules that were dropped or replaced and have no weights.
    kernel = model.config._attn_implementation
    return json.dumps([config, ends, kernel], sort_keys=True, default=str), repr(model)


def weight_bytes(model: PreTrainedModel) -> int:
    """Count the bytes of the weights of a model, of all ranks that share one; tied ones once."""
    return sum(
        part.nbytes
        for weight in model.parameters()
        for part in ([weight] if isinstance(weight, DTensor) else stored_parts(weight))
    )


def stored_parts(tensor: Tensor) -> list[Tensor]:
    """Return the plain tensors that hold a tensor here; a quantised one has integers and scales.

    Example:
        >>> import torch
        >>> from prunelit.models.fingerprint import stored_parts
        >>> [part.shape for part in stored_parts(torch.ones(2, 3))]
        [torch.Size([2, 3])]
    """
    if isinstance(tensor, DTensor):
        return [tensor.to_local()]
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return [part for name in names for part in stored_parts(getattr(tensor, name))]


def content_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor on any device."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def fingerprint_files(folder: str | Path, full: bool = False) -> dict[str, str]:
    """Identify the files of a model folder by their content; a path or a time changes nothing.

    Files without weights are hashed completely. Of a file with weights the names, shapes and types
    are hashed, and of every tensor a sample: all of it up to 1 MiB, else at least 64 blocks of
    4 KiB at equal distances, and one more for every further MiB. 15 GB take about a second. A
    change of values between these blocks does not show.

    Args:
        folder: a folder in the form of transformers.
        full: hash the weights completely, which takes a second or two per GB.

    Returns:
        For each file `sha256` or `sampled` and the hash, by its name.

    Raises:
        InputError: if a file cannot be read or is no file of weights.
    """
    folder = Path(folder)
    found: dict[str, str] = {}
    for patterns, whole in ((_OTHERS, True), (_WEIGHTS, full)):
        for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
            if path.is_file():
                try:
                    found[str(path.relative_to(folder))] = _file(path, whole)
                except OSError as error:
                    raise InputError(f"{str(path)!r} cannot be read: {error}.") from error
    return found


def _file(path: Path, whole: bool) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if whole:
            while chunk := file.read(_WHOLE):
                digest.update(chunk)
            return f"sha256 {digest.hexdigest()}"
        digest.update(f"{size}".encode())
        if path.suffix == ".safetensors":
            header, ranges = _header(file, size, path)
        else:  # the directory at the end of the archive has a checksum of every tensor
            header, ranges = b"", [(0, size), (max(0, size - _WHOLE), size)]
        digest.update(header)
        for begin, end in ranges:
            for place, length in _blocks(begin, end):
                digest.update(os.pread(file.fileno(), length, place))
    return f"sampled {digest.hexdigest()}"


def _header(file: BinaryIO, size: int, path: Path) -> tuple[bytes, list[tuple[int, int]]]:
    """Read the header of a safetensors file, and the bytes that each tensor has in the file."""
    length = int.from_bytes(file.read(8), "little")
    start = 8 + length
    try:
        if start > size:
            raise ValueError("the header is longer than the file")
        header = file.read(length)
        entries = json.loads(header)
        places = [entry["data_offsets"] for name, entry in entries.items() if name[:2] != "__"]
        if not all(0 <= begin <= end <= size - start for begin, end in places):
            raise ValueError("a tensor lies beyond its end")
        return header, [(start + begin, start + end) for begin, end in sorted(places)]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{str(path)!r} is no complete safetensors file ({error}): copy or download it again."
        ) from error


def _blocks(begin: int, end: int) -> list[tuple[int, int]]:
    """Return place and length of the blocks to read of one tensor."""
    size = end - begin
    if size <= _WHOLE:
        return [(begin, size)]
    count = max(_FEWEST_BLOCKS, size // _WHOLE)
    return [(begin + k * (size - _BLOCK) // (count - 1), _BLOCK) for k in range(count)]
