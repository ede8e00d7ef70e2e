"""Small GGUF files, and what the cache has of them."""

from pathlib import Path

import gguf
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    end: str = "<|endoftext|>",
    factors: Tensor | None = None,
    merge: str = "a b",
    pre: str | None = "gpt-2",
    **rope: str | float,
) -> None:
    """A Qwen2 or Llama and its tokenizer, with one extra merge, as float32 GGUF.

    Args:
        path: of the file.
        model: to write.
        tokenizer: to write.
        end: name of the end-of-text token.
        factors: divisors of the rotary frequencies.
        merge: the extra merge.
        pre: name of the rule that splits texts.
        rope: further keys of rotary positions, `__` for a dot.
    """
    config = model.config
    vocabulary = tokenizer.get_vocab()
    tokens = [end, *sorted(vocabulary, key=vocabulary.__getitem__)[1:], merge.replace(" ", "")]
    tokens += [f"<unused {i}>" for i in range(config.vocab_size - len(tokens))]
    family = config.model_type
    writer = gguf.GGUFWriter(path, family)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for key, value in rope.items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(f"{family}.rope.{key.replace('__', '.')}", value)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.numpy())
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges([merge])
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        plain = names.get_name(name, try_suffixes=(".weight", ".bias"))
        rows = parameter.detach()
        if family == "llama" and ("q_proj" in name or "k_proj" in name):
            # llama.cpp rotates neighbouring rows.
            rows = rows.unflatten(0, (-1, 2, config.head_dim // 2)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(plain, rows.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def folders(tmp_path: Path) -> list[Path]:
    """Names in the cache without lock files, including hidden folders."""
    return [path for path in (tmp_path / "cache" / "gguf").iterdir() if path.suffix != ".lock"]
