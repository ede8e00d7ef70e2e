"""Small runs with every kind of file that a user hands over, for a test to spoil one of them."""

import csv
import io
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from ..models.test_gguf import write_gguf
from . import mutations
from .mutations import Mutator

Run = Callable[..., Any]  # `run(folder, *arguments)` ends with the status 0
Config = dict[str, Any]

QUESTIONS = [
    {"id": "a", "context": "What do bees make?", "choices": ["milk", "honey"], "label": 1},
    {"id": "b", "context": "2 + 3 =", "choices": ["4", "5", "6"], "label": 1},
    {"id": "c", "context": "The colour of snow?", "choices": ["white", "red"], "label": 0},
]
TEXT = "The cat sat on a mat while rain fell over the old town and nobody came.\n" * 3
TRAINING = {
    "recovery": {"path": "./text.jsonl", "sequences": 4, "length": 8, "batch_size": 2},
    "calibration": {"path": "./text.jsonl", "sequences": 2, "length": 8, "batch_size": 2},
}


@dataclass
class Situation:
    """A run, and the files that are spoiled, one at a time.

    Args:
        write: writes all files into a folder; `run` may be used for it.
        files: names of which one is spoiled; the first that fits a pattern.
        mutators: ways to spoil it.
        command: arguments of prunelit.
        variables: of the environment.
        exact: whatever is done to the file, the results stay as they are or it is refused.
        leaves: a file that is written before the spoiled one is read.
        count: counts the items in a file that can be read, as another program does.
    """

    write: Callable[[Path, Run], None]
    files: list[str]
    mutators: list[Mutator]
    command: list[str] = field(default_factory=lambda: ["validate", "--config", "config.yaml"])
    variables: dict[str, str] = field(default_factory=dict)
    exact: bool = False
    leaves: str = "run/config.yaml"
    count: Callable[[bytes], int] | None = None


def task(name: str, path: str, **options: Any) -> Config:
    return {"class_path": f"prunelit.tasks.{name}", "init_args": {"path": path, **options}}


CHOICES = task("MultipleChoice", "./questions.jsonl", batch_size=2)
TABLE = {
    "columns": {"context": "question", "target": "answer"},
    "max_new_tokens": 2,
    "template": "{context}",
    "chat": False,
}
CHAT = task("Generation", "./questions.jsonl", batch_size=2, max_new_tokens=2)
WANDA = {
    "class_path": "prunelit.pruners.Wanda",
    "init_args": {
        "sparsity": {"class_path": "prunelit.sparsity.Unstructured", "init_args": {"ratio": 0.5}}
    },
}
MAGNITUDE = {**WANDA, "class_path": "prunelit.pruners.Magnitude"}


def pruning(pruner: Config) -> Config:
    return {"class_path": "prunelit.callbacks.Pruning", "init_args": {"pruner": pruner}}


def write_yaml(path: Path, content: Any) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def write(folder: Path, *tasks: Config, source: str = "./dense", **groups: Any) -> Config:
    """Write `config.yaml` and the data that most runs read."""
    config = {
        "speed": False,  # takes most of the time of a run that is as small
        "model": {"source": source, "dtype": "float32"},
        "data": {"tasks": list(tasks), **groups.pop("data", {})},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": "run",
            "enable_progress_bar": False,
            "logger": False,
            **groups.pop("trainer", {}),
        },
        **groups,
    }
    write_yaml(folder / "config.yaml", config)
    rows = "".join(json.dumps(row) + "\n" for row in QUESTIONS)
    (folder / "questions.jsonl").write_text(rows)
    texts = "".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines())
    (folder / "text.jsonl").write_text(texts)
    return config


def table() -> list[list[str]]:
    rows = [[row["context"], row["choices"][row["label"]]] for row in QUESTIONS]
    return [["question", "answer"], *rows]


def full_run(folder: Path, run: Run) -> None:
    perplexity = task("Perplexity", "./text.jsonl", length=12, limit=2, batch_size=2)
    calibration = {"calibration": TRAINING["calibration"]}
    write(folder, CHOICES, perplexity, data=calibration, pruning=pruning(WANDA), speed=True)


def saved_run(folder: Path, run: Run) -> None:
    full_run(folder, run)
    text = run(folder, "fit", "--config", "config.yaml", "--print_config").stdout
    (folder / "config.yaml").write_text(text)


def linked_run(folder: Path, run: Run) -> None:
    full_run(folder, run)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    data = config["data"]
    for number, one in enumerate(data["tasks"]):
        write_yaml(folder / f"task{number}.yaml", one)
    data["tasks"] = [f"task{number}.yaml" for number in range(len(data["tasks"]))]
    for name in ("model", "data"):
        write_yaml(folder / f"{name}.yaml", config[name])
        config[name] = f"{name}.yaml"
    write_yaml(folder / "config.yaml", config)


def swept_run(folder: Path, run: Run) -> None:
    write(folder, CHOICES, variants={"half": MAGNITUDE, "third": MAGNITUDE})


def questions_run(folder: Path, run: Run) -> None:
    write(folder, CHOICES)


def csv_run(folder: Path, run: Run) -> None:
    write(folder, task("Generation", "./table.csv", **TABLE))
    (folder / "table.csv").write_bytes(mutations.to_csv(table(), ","))


def tsv_run(folder: Path, run: Run) -> None:
    write(folder, task("Generation", "./table.tsv", **TABLE))
    (folder / "table.tsv").write_bytes(mutations.to_csv(table(), "\t"))


def parquet_run(folder: Path, run: Run) -> None:
    write(folder, task("Generation", "./table.parquet", **TABLE))
    names, *rows = table()
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    columns["more"] = list(range(len(rows)))
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "table.parquet")


def model_run(folder: Path, run: Run) -> None:
    write(folder, CHOICES, CHAT, pruning=pruning(MAGNITUDE))
    special = {"eos_token": "<end>", "pad_token": "<end>"}
    (folder / "dense" / "special_tokens_map.json").write_text(json.dumps(special))


def sharded_run(folder: Path, run: Run) -> None:
    write(folder, CHOICES, pruning=pruning(MAGNITUDE))
    model = AutoModelForCausalLM.from_pretrained(folder / "dense")
    (folder / "dense" / "model.safetensors").unlink()
    model.save_pretrained(folder / "dense", max_shard_size="60KB")


def gguf_run(folder: Path, run: Run) -> None:
    write(folder, CHOICES, source="./tiny.gguf")
    settings = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(
        vocab_size=300, num_attention_heads=2, max_position_embeddings=128, **settings
    )
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder / "dense")
    write_gguf(folder / "tiny.gguf", AutoModelForCausalLM.from_config(config), tokenizer)
    shutil.rmtree(folder / "dense")


def keep_only(folder: Path, name: str) -> None:
    for path in folder.iterdir():
        if path.is_dir() and path.name != name:
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def pruned_run(folder: Path, run: Run) -> None:
    write(folder, CHOICES, pruning=pruning(MAGNITUDE))
    run(folder, "fit", "--config", "config.yaml")
    keep_only(folder / "run", "pruned")


FAILING = """
from prunelit.tasks import Perplexity

class Failing(Perplexity):
    def report(self, table):
        raise OSError(5, "This leaves the journal of the other task")
"""


def journal_run(folder: Path, run: Run) -> None:
    (folder / "failing.py").write_text(FAILING)
    failing = {
        "class_path": "failing.Failing",
        "init_args": {"path": "./text.jsonl", "length": 8, "limit": 1},
    }
    write(folder, {**CHAT, "init_args": {**CHAT["init_args"], "batch_size": 1}}, failing)
    run(folder, "validate", "--config", "config.yaml", status=2)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["data"]["tasks"][1]
    write_yaml(folder / "config.yaml", config)
    (folder / "failing.py").unlink()
    keep_only(folder / "run", "unfinished")


def training_run(folder: Path, run: Run) -> None:
    trainer = {"max_epochs": 1}
    write(folder, CHOICES, data=TRAINING, pruning=pruning(WANDA), trainer=trainer)
    run(folder, "fit", "--config", "config.yaml")
    keep_only(folder / "run", "checkpoints")


def collection_run(folder: Path, run: Run) -> None:
    write(folder, task("CollectionRetrieval", "./beir", length=64, depth=100, cache="./cache"))
    (folder / "beir" / "qrels").mkdir(parents=True)
    for name, key, texts in (
        ("corpus", "d", ["Bees make honey.", "Snow is white.", "Two and three is five."]),
        ("queries", "q", ["What do bees make?", "The colour of snow?"]),
    ):
        lines = [json.dumps({"_id": f"{key}{n}", "text": text}) for n, text in enumerate(texts)]
        (folder / "beir" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    qrels = [["query-id", "corpus-id", "score"], ["q0", "d0", "1"], ["q1", "d1", "2"]]
    (folder / "beir" / "qrels" / "test.tsv").write_bytes(mutations.to_csv(qrels, "\t"))


# --- items, counted by another program


def count_jsonl(content: bytes) -> int:
    text = content.decode("utf-8-sig")
    try:
        rows = json.loads(text)
    except ValueError:
        return sum(bool(line.strip()) for line in text.split("\n"))
    return len(rows) if isinstance(rows, list) else 1


csv.field_size_limit(sys.maxsize)


def count_cells(delimiter: str) -> Callable[[bytes], int]:
    def count(content: bytes) -> int:
        stream = io.StringIO(content.decode("utf-8-sig"), newline="")
        rows = csv.reader(stream, delimiter=delimiter)
        return sum(any(cell.strip() for cell in row) for row in rows) - 1

    return count


def count_parquet(content: bytes) -> int:
    return pyarrow.parquet.read_metadata(io.BytesIO(content)).num_rows


def count_queries(content: bytes) -> int:
    rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter="\t")
    names = next(rows)
    judged = [dict(zip(names, row, strict=False)) for row in rows if any(map(str.strip, row))]
    relevant = Counter(row["query-id"] for row in judged if float(row["score"]) > 0)
    return len(set(relevant) & {"q0", "q1"})


def of_model(name: str, mutators: list[Mutator], write: Any = model_run) -> Situation:
    return Situation(write, [f"dense/{name}"], mutators, ["fit", "--config", "config.yaml"])


FIT = ["fit", "--config", "config.yaml"]
SITUATIONS = {
    "config": Situation(full_run, ["config.yaml"], mutations.YAML, FIT),
    "saved config": Situation(saved_run, ["config.yaml"], mutations.YAML, FIT),
    "linked config": Situation(
        linked_run, ["data.yaml", "model.yaml", "task0.yaml", "task1.yaml"], mutations.YAML, FIT
    ),
    "sweep": Situation(
        swept_run, ["config.yaml"], mutations.YAML, ["sweep", "--config", "config.yaml"]
    ),
    "jsonl": Situation(questions_run, ["questions.jsonl"], mutations.JSONL, count=count_jsonl),
    "csv": Situation(csv_run, ["table.csv"], mutations.CSV, count=count_cells(",")),
    "tsv": Situation(tsv_run, ["table.tsv"], mutations.CSV, count=count_cells("\t")),
    "parquet": Situation(parquet_run, ["table.parquet"], mutations.PARQUET, count=count_parquet),
    "config.json": of_model("config.json", mutations.JSON),
    "generation_config.json": of_model("generation_config.json", mutations.JSON),
    "tokenizer.json": of_model("tokenizer.json", mutations.JSON),
    "tokenizer_config.json": of_model("tokenizer_config.json", mutations.JSON),
    "special_tokens_map.json": of_model("special_tokens_map.json", mutations.JSON),
    "chat template": of_model("chat_template.jinja", mutations.TEMPLATE),
    "safetensors": of_model("model.safetensors", mutations.SAFETENSORS),
    "index": of_model("model.safetensors.index.json", mutations.JSON, sharded_run),
    "gguf": Situation(
        gguf_run, ["tiny.gguf"], mutations.GGUF, variables={"PRUNELIT_CACHE": "cache"}
    ),
    "pruning.json": Situation(pruned_run, ["run/pruned/pruning.json"], mutations.JSON, exact=True),
    "pruned weights": Situation(
        pruned_run, ["run/pruned/model.safetensors"], mutations.SAFETENSORS, exact=True
    ),
    "journal": Situation(
        journal_run,
        ["run/unfinished/*.jsonl"],
        mutations.JOURNAL,
        exact=True,
    ),
    "checkpoint": Situation(
        training_run,
        ["run/checkpoints/last.ckpt"],
        mutations.CHECKPOINT,
        [*FIT, "--ckpt_path", "last"],
    ),
    "qrels": Situation(collection_run, ["beir/qrels/test.tsv"], mutations.CSV, count=count_queries),
    "beir": Situation(collection_run, ["beir/corpus.jsonl", "beir/queries.jsonl"], mutations.JSONL),
}
