from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.models.model_pair import ModelPair


def test_models_are_dense_then_pruned(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert list(ModelPair(model, model, tokenizer).models()) == ["dense", "pruned"]
    assert list(ModelPair(model, None, tokenizer).models()) == ["pruned"]


def test_one_model_alone_has_its_own_tokenizer_and_lacks_its_own_blocks() -> None:
    dense, pruned, tokenizer, other = (object() for _ in range(4))
    pair = ModelPair(pruned, dense, tokenizer, [1], other)  # type: ignore[arg-type]
    assert pair.alone("dense") == ModelPair(dense, None, tokenizer)  # type: ignore[arg-type]
    assert pair.alone("pruned") == ModelPair(pruned, None, other, [1])  # type: ignore[arg-type]
