"""A folder without some sublayers: transformers loads it right, or refuses it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prunelit import load_pretrained, prune, save_pretrained
from prunelit.models.without_sublayers import Absent, absent_modules
from prunelit.pruners import BlockDrop, SublayerDrop

MakeModel = Callable[..., PreTrainedModel]


@pytest.fixture
def stored(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, input_ids: Tensor, tmp_path: Path
) -> Path:
    report = prune(model, SublayerDrop(1), input_ids)
    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    return tmp_path / "pruned"


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model.eval()(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_the_auto_class_loads_what_was_pruned(
    kind: str,
    family: str,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,
    tmp_path: Path,
) -> None:
    model = make_model(family)
    stock, config = type(model), type(model.config)
    report = prune(model, SublayerDrop(1, kind), input_ids)
    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert isinstance(again, stock)
    assert isinstance(again.config, config)
    assert again.config.to_dict().keys() == model.config.to_dict().keys()
    assert absent_modules(again) == absent_modules(model) != {}
    assert logits(again, input_ids).equal(logits(model, input_ids))


def test_what_the_loaded_model_saves_is_loaded_again(
    stored: Path, input_ids: Tensor, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(stored)
    model.save_pretrained(tmp_path / "again")
    for folder in (stored, tmp_path / "again"):
        own = json.loads((folder / "config.json").read_text())
        place = own["prunelit"]["absent"].popitem()[0].split(".")[2]
        assert own["prunelit"]["config"]["per_layer_config"] == {place: {"skip": ["attention"]}}
        assert own["prunelit"]["config"]["architectures"] == ["LlamaForCausalLM"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert logits(again, input_ids).equal(logits(model, input_ids))


def test_its_tokenizer_is_that_of_the_dense_model(
    stored: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    own = AutoTokenizer.from_pretrained(stored)
    assert own("a text of words").input_ids == tokenizer("a text of words").input_ids


def test_a_stock_class_that_is_named_refuses_it(stored: Path) -> None:
    with pytest.raises(ValueError, match="lack parts; `import prunelit` and use AutoModelFor"):
        LlamaForCausalLM.from_pretrained(stored)


def test_a_folder_with_all_sublayers_is_a_stock_folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, input_ids: Tensor, tmp_path: Path
) -> None:
    report = prune(model, BlockDrop(1), input_ids)
    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    own = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert own["model_type"] == "llama"
    assert not {"prunelit", "per_layer_config", "transformers_weights"} & set(own)


CODE = """\
import sys
from transformers import AutoModelForCausalLM

try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1])
except ValueError as error:
    print(str(error).partition(".")[0])
import prunelit

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(sum("Absent" in str(type(own)) for own in model.modules()))
"""
REFUSED = (
    "The checkpoint you are trying to load has model type `prunelit` but Transformers does not "
)


def test_importing_prunelit_later_is_enough(stored: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(stored)], check=True, capture_output=True, text=True
    )
    assert done.stdout == f"{REFUSED}recognize this architecture\n1\n"


def test_a_configuration_that_was_cut_is_refused(stored: Path, tmp_path: Path) -> None:
    whole = json.loads((stored / "config.json").read_text())
    del whole["prunelit"]["config"]
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="Expected `config` and `absent` under 'prunelit'"):
        AutoConfig.from_pretrained(tmp_path)


def test_the_configuration_alone_builds_it(stored: Path, input_ids: Tensor) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(stored))
    assert sum(isinstance(module, Absent) for module in model.modules()) == 1
    loaded, _ = load_pretrained(str(stored))
    assert model.state_dict().keys() == loaded.state_dict().keys()
