import pytest
import torch
from transformers import PreTrainedModel

from prunelit import prune, to_semi_structured
from prunelit.errors import InputError
from prunelit.models.semi_structured import is_two_of_four
from prunelit.pruners import Magnitude
from prunelit.sparsity import SemiStructured


def test_refused_where_no_device_supports_it(model: PreTrainedModel) -> None:
    with pytest.raises(InputError, match=r"compute capability 8\.0 or higher but got cpu"):
        to_semi_structured(model)


def test_definition_of_two_of_four() -> None:
    assert is_two_of_four(torch.tensor([[1.0, 0, 0, 2, 0, 0, 0, 3]]))
    assert not is_two_of_four(torch.tensor([[1.0, 0, 4, 2, 0, 0, 0, 0]]))
    assert not is_two_of_four(torch.zeros(2, 6))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_outputs_stay(model: PreTrainedModel, input_ids: torch.Tensor) -> None:
    prune(model, Magnitude(SemiStructured(2, 4)))
    model.half().cuda()
    with torch.no_grad():
        before = model(input_ids=input_ids.cuda()).logits
        assert to_semi_structured(model) > 0
        after = model(input_ids=input_ids.cuda()).logits
    torch.testing.assert_close(after, before, rtol=2e-2, atol=2e-2)
