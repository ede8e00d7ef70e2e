from collections.abc import Callable

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


@pytest.fixture
def compress(monkeypatch: pytest.MonkeyPatch) -> Callable[[PreTrainedModel], int]:
    """`to_semi_structured` as if the device could do it; weights stay as they are."""

    def run(model: PreTrainedModel) -> int:
        monkeypatch.setattr(PreTrainedModel, "device", torch.device("cuda"))
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr("torch.sparse.to_sparse_semi_structured", lambda weight: weight)
        return to_semi_structured(model)

    return run


def test_fused_experts_that_stay_dense_are_named(
    make_model: Callable[..., PreTrainedModel], compress: Callable[[PreTrainedModel], int]
) -> None:
    model = make_model("mixtral").half()
    prune(model, Magnitude(SemiStructured(2, 4)))
    names = "the fused experts, mlp.experts.gate_up_proj, mlp.experts.down_proj: they stay dense"
    with pytest.warns(UserWarning, match=names):
        count = compress(model)
    assert count == 4 * len(model.model.layers)  # the maps of attention


@pytest.mark.parametrize(("include", "found"), [
    (["mlp.experts.down_proj"], r"found only those of the fused experts, mlp\.experts\.down_proj,"),
    (None, "found none"),
])  # fmt: skip
def test_nothing_to_compress_is_refused(
    include: list[str] | None,
    found: str,
    make_model: Callable[..., PreTrainedModel],
    compress: Callable[[PreTrainedModel], int],
) -> None:
    model = make_model("mixtral").half()
    if include is not None:
        prune(model, Magnitude(SemiStructured(2, 4), include=include))
    with pytest.raises(InputError, match=found):
        compress(model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_outputs_stay(model: PreTrainedModel, input_ids: torch.Tensor) -> None:
    prune(model, Magnitude(SemiStructured(2, 4)))
    model.half().cuda()
    with torch.no_grad():
        before = model(input_ids=input_ids.cuda()).logits
        assert to_semi_structured(model) > 0
        after = model(input_ids=input_ids.cuda()).logits
    torch.testing.assert_close(after, before, rtol=2e-2, atol=2e-2)
