"""Every step of a trajectory against a slow loop that shares no code with the task."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.tasks import ModelPair

BUDGET = 6


class Reader:
    """Run a model on one prompt, one position, without cache and padding."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        head: Any = model.get_output_embeddings()
        head.register_forward_pre_hook(self._keep)

    def _keep(self, _: Any, arguments: tuple[Tensor]) -> None:
        self._hidden = arguments[0]

    @torch.no_grad()
    def __call__(self, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """h and z of the last token, in float64."""
        logits = self._model(input_ids=torch.tensor([ids]), use_cache=False).logits
        return self._hidden[0, -1].double().numpy(), logits[0, -1].double().numpy()


class Noise:
    def __init__(self, seed: int, prompt: int) -> None:
        state = np.random.SeedSequence((seed, prompt)).generate_state(1, np.uint64)
        self._generator = torch.Generator().manual_seed(int(state[0]))

    def __call__(self, size: int) -> np.ndarray:
        uniform = torch.rand(size, generator=self._generator, dtype=torch.float64).numpy()
        return -np.log(-np.log(uniform))


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def variance(weights: np.ndarray, values: np.ndarray) -> float:
    weights = weights / weights.sum()
    return float(weights @ (values - weights @ values) ** 2)


def deviation(
    dense: tuple[np.ndarray, np.ndarray], pruned: tuple[np.ndarray, np.ndarray], temperature: float
) -> dict[str, float]:
    (h, z), (g, y) = dense, pruned
    log_p, log_q = log_softmax(z / temperature), log_softmax(y / temperature)
    p, q, dz = np.exp(log_p), np.exp(log_q), y - z
    top = np.argsort(-z)

    def estimate(a: np.ndarray, b: np.ndarray) -> float:
        d = b - a
        return 1 - (d @ d - (d @ a) ** 2 / (a @ a)) / (2 * a @ a)

    return {
        "embedding_cosine": similarity(h, g),
        "embedding_cosine_estimate": estimate(h, g),
        "logit_cosine": similarity(z, y),
        "logit_cosine_estimate": estimate(z, y),
        "probability_cosine": similarity(p, q),
        "probability_cosine_estimate": 1 - variance(p**2, dz) / (2 * temperature**2),
        "kl_dense_pruned": p @ (log_p - log_q),
        "kl_dense_pruned_estimate": variance(p, dz) / (2 * temperature**2),
        "kl_pruned_dense": q @ (log_q - log_p),
        "kl_pruned_dense_estimate": variance(q, dz) / (2 * temperature**2),
        "logit_mse": (dz**2).mean(),
        "logit_std": dz.std(),
        "logit_std_p": math.sqrt(variance(p, dz)),
        "logit_std_top5": dz[top[:5]].std(),
        "logit_std_top10": dz[top[:10]].std(),
        "top1_agreement": float(z.argmax() == y.argmax()),
    }


def slowly(
    pair: ModelPair, context: str, prompt: int, temperature: float, sample: bool, seed: int
) -> tuple[dict[str, list], dict[str, list[dict[str, float]]]]:
    """Tokens and keep probabilities, and deviations by step of each mode."""
    assert pair.dense is not None
    stop = {0, *pair.dense.generation_config.eos_token_id}
    ids = pair.tokenizer(context)["input_ids"]
    read = {"dense": Reader(pair.dense), "pruned": Reader(pair.pruned)}
    seen: dict[str, list] = {}
    tokens: dict[str, list[int]] = {}
    for name, reader in read.items():
        noise = Noise(seed, prompt)
        tokens[name], seen[name] = [], []
        while len(tokens[name]) < BUDGET and not stop & set(tokens[name]):
            seen[name].append(reader(ids + tokens[name]))
            z = seen[name][-1][1]
            z = z / temperature + noise(len(z)) if sample else z
            tokens[name].append(int(z.argmax()))
    found: dict[str, list[dict[str, float]]] = {"teacher_forced": [], "free_running": []}
    keep = []
    for step, token in enumerate(tokens["dense"]):
        forced = read["pruned"](ids + tokens["dense"][:step])
        found["teacher_forced"].append(deviation(seen["dense"][step], forced, temperature))
        z, y = seen["dense"][step][1], forced[1]
        p, q = (np.exp(log_softmax(x / temperature)) for x in (z, y))
        shared = 1 / np.maximum(p, q * p[token] / q[token]).sum()
        keep.append(shared if sample else float(y.argmax() == token))
        if step < len(tokens["pruned"]):
            pair_of = seen["dense"][step], seen["pruned"][step]
            found["free_running"].append(deviation(*pair_of, temperature))
    return {**tokens, "keep": keep}, found


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize(("temperature", "sample"), [(1.0, False), (0.7, True)])
def test_every_step_is_that_of_a_slow_loop(
    parting: Callable[..., ModelPair],
    contexts: list[str],
    trajectory: Callable[..., Any],
    name: str,
    temperature: float,
    sample: bool,
) -> None:
    pair = parting(name)
    _, table, streams = trajectory(pair, temperature=temperature, sample=sample, seed=5)
    lengths, firsts = set(), []
    for prompt in range(len(contexts)):
        written, expected = slowly(pair, contexts[prompt], prompt, temperature, sample, 5)
        for model in ("dense", "pruned"):
            tokens = written[model]
            assert table[f"{model}/tokens"][prompt].tolist() == tokens + [-1] * (
                BUDGET - len(tokens)
            )
        dense, pruned = written["dense"], written["pruned"]
        lengths.add(len(dense))
        parts = [s for s in range(len(dense)) if dense[: s + 1] != pruned[: s + 1]]
        firsts.append(parts[0] if parts else None)
        assert table["diverged"][prompt] == bool(parts)
        assert table["last"][prompt] == (parts[0] if parts else len(dense) - 1)
        keep = table["keep"][prompt]
        assert keep[: len(dense)].tolist() == pytest.approx(written["keep"], rel=1e-3, abs=1e-4)
        assert keep[len(dense) :].isnan().all()
        for mode, steps in expected.items():
            for quantity in steps[0]:
                values = streams[f"{mode}/{quantity}"][prompt]
                exact = [step[quantity] for step in steps]
                assert values[: len(exact)].tolist() == pytest.approx(exact, rel=1e-3, abs=2e-5)
                assert values[len(exact) :].isnan().all(), quantity
                if f"item/{mode}/{quantity}" in table:
                    item = table[f"item/{mode}/{quantity}"][prompt].item()
                    assert item == pytest.approx(np.mean(exact), rel=1e-3, abs=2e-5)
        both = range(min(len(dense), len(pruned)))
        for quantity in ("embedding", "logit", "probability"):
            added = streams[f"accumulation/{quantity}_distance"][prompt]
            exact = [
                expected["teacher_forced"][s][f"{quantity}_cosine"]
                - expected["free_running"][s][f"{quantity}_cosine"]
                for s in both
            ]
            assert added[: len(exact)].tolist() == pytest.approx(exact, rel=1e-3, abs=2e-5)
            assert added[len(exact) :].isnan().all()
    # The slow loop has seen an end, a divergence after the first step, and agreement.
    assert len(lengths) > 1
    assert any(firsts)
    assert len(set(firsts)) > 2
