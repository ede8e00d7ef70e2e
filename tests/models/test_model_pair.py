from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.models.model_pair import ModelPair


def test_models_are_dense_then_pruned(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert list(ModelPair(model, model, tokenizer).models()) == ["dense", "pruned"]
    assert list(ModelPair(model, None, tokenizer).models()) == ["pruned"]
