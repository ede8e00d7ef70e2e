import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from prunelit import compare, prune
from prunelit.errors import InputError
from prunelit.models.architecture import final_hidden
from prunelit.models.comparison import deviation_sums, token_deviations
from prunelit.pruners import Wanda
from prunelit.sparsity import Unstructured

MakeModel = Callable[..., PreTrainedModel]
Batch = dict[str, Tensor]


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def relative_parts(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    along = (a @ (b - a)) / (a @ a) * a
    norm = np.linalg.norm(a)
    return np.linalg.norm(along) / norm, np.linalg.norm(b - a - along) / norm


def variance(weights: np.ndarray, values: np.ndarray) -> float:
    weights = weights / weights.sum()
    return float(weights @ values**2 - (weights @ values) ** 2)


def of_logits(z: np.ndarray, y: np.ndarray, temperature: float) -> dict[str, float]:
    """Every quantity of one token, straight from its definition, in float64."""
    p, q = softmax(z / temperature), softmax(y / temperature)
    log_p, log_q = log_softmax(z / temperature), log_softmax(y / temperature)
    m = (p + q) / 2
    order, other = np.argsort(-z, kind="stable"), np.argsort(-y, kind="stable")
    parallel, orthogonal = relative_parts(z, y)
    difference = y - z
    return {
        "logit_cosine": similarity(z, y),
        "logit_cosine_estimate": 1 - orthogonal**2 / 2,
        "logit_mse": (difference**2).mean(),
        "logit_parallel": parallel,
        "logit_orthogonal": orthogonal,
        "logit_std": difference.std(),
        "logit_std_p": variance(p, difference) ** 0.5,
        "logit_std_top5": difference[order[:5]].std(),
        "logit_std_top10": difference[order[:10]].std(),
        "probability_cosine": similarity(p, q),
        "probability_cosine_estimate": 1 - variance(p**2, difference) / (2 * temperature**2),
        "kl_dense_pruned": p @ (log_p - log_q),
        "kl_dense_pruned_estimate": variance(p, difference) / (2 * temperature**2),
        "kl_pruned_dense": q @ (log_q - log_p),
        "kl_pruned_dense_estimate": variance(q, difference) / (2 * temperature**2),
        "js": (p @ (log_p - np.log(m)) + q @ (log_q - np.log(m))) / 2,
        "top1_agreement": float(order[0] == other[0]),
        "top5_overlap": len(set(order[:5]) & set(other[:5])) / 5,
        "top10_overlap": len(set(order[:10]) & set(other[:10])) / 10,
    }


@torch.no_grad()
def oracle(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    batches: list[Batch],
    temperature: float = 1.0,
    subset: list[int] | None = None,
) -> dict[str, float]:
    """Full logits of single unpadded sequences, one token after the other."""
    rows = []
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True):
            alone = ids[mask][None]
            outputs = []
            for model in (dense, pruned):
                hidden = final_hidden(model, alone, torch.ones_like(alone))[0].double().numpy()
                outputs += [hidden, model(alone).logits[0].double().numpy()]
            for h, z, g, y in zip(*outputs, strict=True):
                parallel, orthogonal = relative_parts(h, g)
                row = {
                    "embedding_cosine": similarity(h, g),
                    "embedding_cosine_estimate": 1 - orthogonal**2 / 2,
                    "embedding_parallel": parallel,
                    "embedding_orthogonal": orthogonal,
                    **of_logits(z, y, temperature),
                }
                if subset is not None:
                    inside = of_logits(z[subset], y[subset], temperature)
                    row |= {f"subspace_{name}": value for name, value in inside.items()}
                rows.append(row)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | {
        "n": len(rows)
    }


@pytest.fixture
def batches(padded: Batch, input_ids: Tensor) -> list[Batch]:
    """Left padding, right padding and none; uneven."""
    right = torch.ones(3, 9, dtype=torch.int64)
    right[1, 4:] = 0
    return [
        padded,
        {"input_ids": input_ids[:3, :9], "attention_mask": right},
        {"input_ids": input_ids[3:4, 5:9], "attention_mask": torch.ones(1, 4, dtype=torch.int64)},
    ]


@pytest.fixture
def pair(make_model: MakeModel, input_ids: Tensor) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Dense and pruned."""
    pruned = make_model("llama")
    prune(pruned, Wanda(Unstructured(0.6)), input_ids)
    return make_model("llama"), pruned


def test_model_against_its_own_copy_is_the_identity(
    make_model: MakeModel, family: str, batches: list[Batch]
) -> None:
    dense = make_model(family)
    result = compare(dense, copy.deepcopy(dense), batches, subset=torch.arange(10, 40))
    assert result.pop("n") == 111 + 22 + 4
    for name, value in result.items():
        same = any(word in name for word in ("cosine", "agreement", "overlap"))
        assert value == pytest.approx(float(same), abs=1e-6), name
    assert {"kl_dense_pruned", "logit_mse", "subspace_js", "embedding_cosine"} <= set(result)


def test_every_quantity_sees_the_pruning(
    make_model: MakeModel, family: str, batches: list[Batch]
) -> None:
    dense, pruned = make_model(family), make_model(family)
    prune(pruned, Wanda(Unstructured(0.5)), batches)
    result = compare(dense, pruned, batches, subset=torch.arange(10, 40))
    assert result.pop("n") == 137
    for name, value in result.items():
        same = any(word in name for word in ("cosine", "agreement", "overlap"))
        assert value < 0.9999 if same else value > 1e-4, name


@pytest.mark.parametrize(("temperature", "subset"), [(1.0, None), (0.7, [5, 250, 17, 3, 80, 81])])
def test_result_is_that_of_full_logits_one_token_after_the_other(
    make_model: MakeModel,
    family: str,
    batches: list[Batch],
    temperature: float,
    subset: list[int] | None,
) -> None:
    dense, pruned = make_model(family), make_model(family)
    prune(pruned, Wanda(Unstructured(0.3)), batches)
    result = compare(
        dense,
        pruned,
        batches,
        temperature=temperature,
        subset=None if subset is None else torch.tensor(subset),
    )
    expected = oracle(dense, pruned, batches, temperature, subset)
    if subset is not None:
        # The top 10 of six tokens are the six.
        expected["subspace_top10_overlap"] = 1.0
    assert set(result) == set(expected)
    for name, value in result.items():
        assert value == pytest.approx(expected[name], rel=2e-4, abs=2e-5), name


def test_dense_comes_first(make_model: MakeModel, padded: Batch) -> None:
    dense, sharper = make_model("llama"), make_model("llama")
    sharper.model.norm.weight.data.mul_(3)
    there, back = compare(dense, sharper, [padded]), compare(sharper, dense, [padded])
    assert there["kl_dense_pruned"] == pytest.approx(back["kl_pruned_dense"], rel=1e-5)
    assert there["kl_dense_pruned"] > 1.1 * back["kl_dense_pruned"]
    assert there["embedding_parallel"] == pytest.approx(2, rel=1e-5)
    assert back["embedding_parallel"] == pytest.approx(2 / 3, rel=1e-5)
    assert there["js"] == pytest.approx(back["js"], rel=1e-5)


def test_batches_of_any_size_give_the_same_result(
    pair: tuple[PreTrainedModel, PreTrainedModel], input_ids: Tensor
) -> None:
    expected = compare(*pair, input_ids)
    for size in (1, 4):
        found = compare(*pair, input_ids, batch_size=size)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_what_stands_at_padding_changes_nothing(
    pair: tuple[PreTrainedModel, PreTrainedModel], padded: Batch
) -> None:
    filled = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, 123)
    assert compare(*pair, [{**padded, "input_ids": filled}]) == compare(*pair, [padded])


def test_sums_are_per_sequence(
    pair: tuple[PreTrainedModel, PreTrainedModel], padded: Batch
) -> None:
    with torch.no_grad():
        sums, counts = deviation_sums(*pair, padded)
    assert counts.tolist() == [13, 20, 20, 18, 20, 20]
    for row in range(6):
        one = compare(*pair, [{key: value[row : row + 1] for key, value in padded.items()}])
        for name, values in sums.items():
            assert values.dtype == torch.float64
            assert values[row].item() / counts[row].item() == pytest.approx(
                one[name], rel=1e-4, abs=1e-6
            )


def test_sequence_of_padding_alone_counts_nothing(
    pair: tuple[PreTrainedModel, PreTrainedModel], input_ids: Tensor
) -> None:
    mask = torch.ones_like(input_ids)
    mask[2] = 0
    result = compare(*pair, [{"input_ids": input_ids, "attention_mask": mask}])
    rest = compare(*pair, input_ids[[0, 1, 3, 4, 5]])
    assert result == pytest.approx(rest, rel=1e-4, abs=1e-6)


def test_autocast_around_it_changes_only_the_forward_passes(
    pair: tuple[PreTrainedModel, PreTrainedModel], padded: Batch
) -> None:
    real = padded["attention_mask"].bool()
    full = compare(*pair, [padded])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        result = compare(*pair, [padded])
        hidden = [final_hidden(model, **padded)[real] for model in pair]
    assert result["logit_mse"] != pytest.approx(full["logit_mse"], rel=1e-4)
    logits = [
        h.float() @ model.lm_head.weight.detach().T for h, model in zip(hidden, pair, strict=True)
    ]
    expected = (logits[1] - logits[0]).square().mean().item()
    assert result["logit_mse"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_comparing_and_the_mode_is_restored(
    make_model: MakeModel, input_ids: Tensor, training: bool
) -> None:
    dense, pruned = make_model("gpt2"), make_model("gpt2").train(training)
    assert pruned.config.resid_pdrop > 0
    assert compare(dense, pruned, input_ids)["kl_dense_pruned"] == pytest.approx(0, abs=1e-6)
    assert not dense.training
    assert pruned.training is training


def test_leaves_no_gradient_and_takes_an_inference_mode(
    pair: tuple[PreTrainedModel, PreTrainedModel], padded: Batch
) -> None:
    expected = compare(*pair, [padded])
    with torch.inference_mode():
        assert compare(*pair, [padded]) == expected
    assert all(isinstance(value, float | int) for value in expected.values())


@pytest.mark.parametrize(
    ("what", "values"), [("vocab_size", (300, 301)), ("hidden_size", (32, 64))]
)
def test_models_that_cannot_be_subtracted_are_refused(
    what: str, values: tuple[int, int], input_ids: Tensor
) -> None:
    models = []
    for value in values:
        sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 16, what: value}
        config = LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=4)
        models.append(AutoModelForCausalLM.from_config(config).eval())
    with pytest.raises(
        InputError, match=f"with the same {what} but got {values[0]} and {values[1]}"
    ):
        compare(*models, input_ids)


def test_model_with_another_unembedding_is_refused(
    make_model: MakeModel, input_ids: Tensor
) -> None:
    pruned = make_model("llama")
    pruned.config.logit_scale = 0.5
    with pytest.raises(InputError, match="LlamaForCausalLM differ by"):
        compare(make_model("llama"), pruned, input_ids)


def test_nothing_to_compare(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    with pytest.raises(InputError, match="at least one token"):
        compare(*pair, [])


def test_embeddings_that_are_no_numbers_are_refused(
    pair: tuple[PreTrainedModel, PreTrainedModel],
) -> None:
    hidden = torch.randn(3, 32)
    other = hidden.clone()
    other[1, 5] = torch.nan
    with pytest.raises(InputError, match="Expected a number for `embedding_cosine` of every token"):
        token_deviations(*pair, hidden, other)
