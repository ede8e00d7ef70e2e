"""Tiny models of every family, a tiny tokenizer, and folders that hold both."""

import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

# Tests must not wait for a hub that cannot be reached. The libraries read this at import.
os.environ["HF_HUB_OFFLINE"] = "1"

import datasets.config
import platformdirs
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

import prunelit.__main__
import prunelit.cli  # Lightning's log handler keeps the stderr of its import: import it once, here
import prunelit.tasks.collection_retrieval

# A run in the background ignores this signal, and some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Tiny tensors gain nothing from threads, and threads on a busy machine wait for each other.
torch.set_num_threads(1)

# Files that tests run or read; they contain no tests.
collect_ignore = ["golden", "material"]

VOCABULARY = 300
FUZZ = 230  # spoiled files: 10 of each kind, 5 of which are in every run
SHARED = Path(__file__).parents[2] / "shared"


def _common(**more: object) -> dict:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        **more,
    }


# The sliding windows are shorter than the sequences of the tests, so that they have an effect.
FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(
        **_common(intermediate_size=48, num_key_value_heads=2, tie_word_embeddings=True)
    ),
    "qwen2": lambda: Qwen2Config(
        **_common(
            intermediate_size=48,
            num_key_value_heads=2,
            use_sliding_window=True,
            sliding_window=6,
            max_window_layers=1,
        )
    ),
    "qwen3": lambda: Qwen3Config(
        **_common(intermediate_size=48, num_key_value_heads=2, head_dim=8)
    ),
    "mistral": lambda: MistralConfig(
        **_common(intermediate_size=48, num_key_value_heads=2, sliding_window=6)
    ),
    "gemma2": lambda: Gemma2Config(
        **_common(intermediate_size=48, num_key_value_heads=2, head_dim=8, sliding_window=6)
    ),
    "phi": lambda: PhiConfig(**_common(intermediate_size=48)),
    "gpt_neox": lambda: GPTNeoXConfig(**_common(intermediate_size=48)),
    "opt": lambda: OPTConfig(**_common(ffn_dim=48, word_embed_proj_dim=16)),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=128,
        bos_token_id=0,
        eos_token_id=0,
    ),
}

# Mixtures of experts whose weights are fused.
MIXTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "mixtral": lambda: MixtralConfig(
        **_common(intermediate_size=24, num_key_value_heads=2, num_local_experts=4)
    ),
    # A shared expert with a gate.
    "qwen2_moe": lambda: Qwen2MoeConfig(
        **_common(
            num_key_value_heads=2,
            intermediate_size=24,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=40,
            num_experts=4,
            num_experts_per_tok=2,
        )
    ),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **_common(
            num_key_value_heads=2,
            head_dim=8,
            moe_intermediate_size=24,
            num_experts=4,
            num_experts_per_tok=2,
        )
    ),
    # Transposed tensors with biases, and a router with a bias.
    "gpt_oss": lambda: GptOssConfig(
        **_common(
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=24,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    ),
    # Block 0 is dense, the others have a shared expert, groups and a correction bias.
    "deepseek_v3": lambda: DeepseekV3Config(
        **_common(
            num_key_value_heads=4,
            intermediate_size=48,
            moe_intermediate_size=24,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=2,
            first_k_dense_replace=1,
            q_lora_rank=16,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
        )
    ),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of `tests/bad_input/test_fuzz.py`."""
    group = parser.getgroup("prunelit")
    group.addoption("--fuzz", type=int, default=FUZZ, help="number of spoiled files to try")
    group.addoption("--fuzz-case", type=int, action="append", help="number of the one to try")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with the argument `family` on every family, with `mixture` on every mixture."""
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", list(FAMILIES))
    if "mixture" in metafunc.fixturenames:
        metafunc.parametrize("mixture", list(MIXTURES))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark most of a table `full`: tests with a `family` and further parameters.

    Every run tests each family and each other value at least once. The remaining combinations are
    marked `full`.
    """
    tables: dict[str, dict[tuple[str, str], list[pytest.Item]]] = {}
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        family = params.get("family") or params.get("mixture")
        if family is not None:
            # The id is `family-others` in some order; without the family it names the others.
            others = item.callspec.id.replace(family, "", 1)
            table = tables.setdefault(item.nodeid.partition("[")[0], {})
            table.setdefault((family, others), []).append(item)
    for table in tables.values():
        families = list(dict.fromkeys(family for family, _ in table))
        others = list(dict.fromkeys(other for _, other in table))
        number = max(len(families), len(others))
        sample = {(families[n % len(families)], others[n % len(others)]) for n in range(number)}
        for key, same in table.items():
            if key not in sample:
                for item in same:
                    item.add_marker(pytest.mark.full)


def build_model(family: str = "llama", seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config((FAMILIES | MIXTURES)[family]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.15)
    return model


@pytest.fixture(autouse=True, scope="session")
def _own_dataset_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the rows of tests out of the user's cache."""
    folder = str(tmp_path_factory.mktemp("datasets"))
    datasets.config.HF_DATASETS_CACHE = Path(folder)
    os.environ["HF_DATASETS_CACHE"] = folder


@pytest.fixture(autouse=True, scope="session")
def _own_embedding_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep embeddings of tests out of the user's cache, and find none of an earlier session."""
    folder = tmp_path_factory.mktemp("embeddings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prunelit.tasks.collection_retrieval, "default_folder", lambda: folder)
        yield


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for tests. Converted GGUF files stay in that of the user."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("PRUNELIT_CACHE") or platformdirs.user_cache_dir("prunelit")
    converted = Path(before, "gguf")
    converted.mkdir(parents=True, exist_ok=True)
    (folder / "gguf").symlink_to(converted, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNELIT_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def _no_dense_answers(own_cache: Path) -> None:
    """No test reads what the dense model gave in another test."""
    shutil.rmtree(own_cache / "dense", ignore_errors=True)


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    """`make_model("llama", seed=0)` builds a tiny random model with large weights."""
    return build_model


@pytest.fixture
def model(make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return make_model("llama")


def build_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0} | {symbol: i + 1 for i, symbol in enumerate(alphabet)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", pad_token="<end>", padding_side="left"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens (256) after `<end>` (id 0), with a chat template."""
    return build_tokenizer()


@pytest.fixture
def folder(tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A saved tiny Llama with its tokenizer."""
    path = tmp_path / "dense"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def input_ids() -> torch.Tensor:
    """(6, 20) token ids without the end-of-text token."""
    return torch.randint(1, 257, (6, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def padded(input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same tokens; row 0 has 7 padded tokens on the left, row 3 has 2."""
    mask = torch.ones_like(input_ids)
    mask[0, :7] = 0
    mask[3, :2] = 0
    return {"input_ids": input_ids.masked_fill(mask == 0, 0), "attention_mask": mask}


@pytest.fixture
def shared() -> Path:
    """A folder of real data beside the checkout. Tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("no folder of real data beside the checkout")
    return SHARED


# Seven questions and twelve lines of text. One question has a choice that is a prefix of another.
MATERIAL = Path(__file__).parent / "material"


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only folder with a model (`dense`), `questions.jsonl` and `text.jsonl`."""
    path = tmp_path_factory.mktemp("material")
    shutil.copytree(MATERIAL, path, dirs_exist_ok=True)
    build_model().save_pretrained(path / "dense")
    build_tokenizer().save_pretrained(path / "dense")
    return path


MakeConfig = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="session")
def make_config(material: Path) -> MakeConfig:
    """`make_config(folder)` reads `material/config.yaml` for a run that writes into `folder`."""
    template = string.Template((MATERIAL / "config.yaml").read_text(encoding="utf-8"))

    def make(folder: Path) -> dict[str, Any]:
        return yaml.safe_load(template.substitute(material=material, folder=folder))

    return make


@pytest.fixture(scope="session")
def save_config() -> Callable[[Path, dict[str, Any]], Path]:
    """`save_config(folder, config)` writes `config.yaml` and returns its path."""

    def save(folder: Path, config: dict[str, Any]) -> Path:
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
        return path

    return save


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`cli(*arguments)` runs `prunelit *arguments` in this process."""

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["prunelit", *arguments])
        monkeypatch.setattr(sys, "path", sys.path.copy())
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        handlers = {number: signal.getsignal(number) for number in numbers}
        try:
            prunelit.__main__.main()
        finally:  # a command that was stopped ignores further signals
            for number, handler in handlers.items():
                signal.signal(number, handler)

    return run


@pytest.fixture(scope="session")
def console() -> Callable[..., CompletedProcess[str]]:
    """`console(folder, *arguments)` runs `prunelit *arguments` in `folder`, as a new process."""

    def run(folder: Path, *arguments: str) -> CompletedProcess[str]:
        command = [sys.executable, "-m", "prunelit", *arguments]
        return subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def start_process() -> Callable[..., BaseProcess]:
    """`start_process(script, names)` runs a script in a process that need not import the libraries.

    It is a fork of a process that did.
    """
    context = multiprocessing.get_context("forkserver")
    modules = ["prunelit.cli", "prunelit.tasks.collection_retrieval"]
    context.set_forkserver_preload([*modules, "transformers.models.llama.modeling_llama"])

    def run(script: Path, names: dict[str, Any]) -> BaseProcess:
        process = context.Process(target=runpy.run_path, args=(str(script), names))
        process.start()
        return process

    return run


@pytest.fixture(scope="session")
def run_ranks(start_process: Callable[..., BaseProcess]) -> Callable[..., None]:
    """`run_ranks(script, world, FOLDER=...)` runs a script in processes, and all must succeed.

    The script has the names RANK and WORLD beside those that are given.
    """

    def run(script: Path, world: int, **names: Any) -> None:
        ranks = [start_process(script, {**names, "WORLD": world, "RANK": n}) for n in range(world)]
        try:
            for rank in ranks:
                rank.join(300)
            assert [rank.exitcode for rank in ranks] == [0] * world
        finally:
            for rank in ranks:
                rank.kill()

    return run


@pytest.fixture(scope="session")
def forked(
    tmp_path_factory: pytest.TempPathFactory,
    own_cache: Path,
    start_process: Callable[..., BaseProcess],
) -> Callable[..., CompletedProcess[str]]:
    """As `console`, but the process need not import the libraries, which takes seconds.

    It is a fork of one that did. It reads nothing that the dense model gave in an earlier run. With
    `ranks`, as many start as torchrun would start them; the status is the first one that is not 0,
    and the last lines of stderr name the ranks that failed. `variables` are added to the
    environment. `limits` are seconds, after which SIGALRM ends the process, and bytes that it may
    allocate; figures are then empty files. `meanwhile` is called with the first process when all
    have started. A test of what happens at the start needs `console`.
    """
    script = Path(__file__).parent / "material" / "forked_console.py"
    streams = [tmp_path_factory.mktemp("streams") / name for name in ("stdout", "stderr")]

    def run(
        folder: Path,
        *arguments: str,
        ranks: int = 1,
        variables: dict[str, str] | None = None,
        limits: tuple[int, int] | None = None,
        meanwhile: Callable[[BaseProcess], None] = lambda process: None,
    ) -> CompletedProcess[str]:
        for stream in streams:
            stream.write_text("")
        shutil.rmtree(own_cache / "dense", ignore_errors=True)
        names = {
            "FOLDER": str(folder),
            "ARGUMENTS": arguments,
            "ENVIRONMENT": {**os.environ, "OMP_NUM_THREADS": "1", **(variables or {})},
            "STREAMS": [str(stream) for stream in streams],
            "LIMITS": limits,
        }
        own: list[dict[str, str]] = [{}]
        if ranks > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
            own = [{**group, "LOCAL_RANK": str(rank)} for rank in range(ranks)]
        environments = [{**names["ENVIRONMENT"], **more} for more in own]
        processes = [start_process(script, {**names, "ENVIRONMENT": each}) for each in environments]
        meanwhile(processes[0])
        for process in processes:
            process.join(300)
        statuses = [process.exitcode for process in processes]
        late = [process for process in processes if process.is_alive()]
        for process in processes:
            assert process.pid is not None
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it left running
            process.join()
        if late:
            raise TimeoutError(f"prunelit {' '.join(arguments)} takes more than 300 seconds.")
        stdout, stderr = (stream.read_text(errors="replace") for stream in streams)
        if ranks > 1:
            failed = [(rank, status) for rank, status in enumerate(statuses) if status]
            stderr += "".join(f"Rank {rank} ended with status {own}.\n" for rank, own in failed)
        return CompletedProcess(arguments, next(filter(None, statuses), 0), stdout, stderr)

    return run


@pytest.fixture(scope="session")
def fitted(
    tmp_path_factory: pytest.TempPathFactory,
    make_config: MakeConfig,
    save_config: Callable[..., Path],
    forked: Callable[..., CompletedProcess[str]],
) -> Path:
    """The read-only folder of one `prunelit fit`, with its `stdout` and `stderr`."""
    folder = tmp_path_factory.mktemp("fitted")
    save_config(folder, make_config(folder))
    done = forked(folder, "fit", "--config", "config.yaml", "--speed", "true")
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder
