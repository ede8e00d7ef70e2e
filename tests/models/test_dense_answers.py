"""What the dense model gave is read back exactly, and nothing else is."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.models import dense_answers
from prunelit.models.architecture import final_hidden
from prunelit.models.dense_answers import DenseAnswers, open_answers
from prunelit.models.fingerprint import fingerprint
from prunelit.models.inference.generation import Rollouts, Sampling, rollout
from prunelit.models.model_pair import ModelPair

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])
MASK = torch.ones_like(IDS)


@pytest.fixture
def answers(model: PreTrainedModel, tmp_path: Path) -> DenseAnswers:
    return DenseAnswers(model, tmp_path)


def halves(model: PreTrainedModel, scale: float = 1.0) -> dict[str, Tensor]:
    """A mapping of parts of one tensor."""
    one, other = (torch.arange(8) * scale).double().chunk(2)
    return {"one": one[::2], "other": other}


def again(before: DenseAnswers) -> DenseAnswers:
    """The same cache in a later run."""
    return DenseAnswers(before.model, before._root)


def state(answers: DenseAnswers) -> tuple[int, int]:
    """Answers that were read, and that were measured."""
    return answers.counts.pop("", (0, 0))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_is_equal_bit_for_bit(dtype: torch.dtype, answers: DenseAnswers) -> None:
    answers.model.to(dtype)
    expected = final_hidden(answers.model, IDS, MASK)
    for one, counts in ((answers, (0, 1)), (again(answers), (1, 0))):
        found = one.ask(final_hidden, [IDS, MASK], {}, {})
        assert found.dtype == dtype
        assert torch.equal(found, expected)
        assert state(one) == counts


def test_mappings_and_dataclasses_come_back(
    answers: DenseAnswers, tokenizer: PreTrainedTokenizerBase
) -> None:
    for one in (answers, again(answers)):
        found = one.ask(halves, [], {"scale": 0.5}, {})
        assert {name: x.tolist() for name, x in found.items()} == {
            "one": [0, 1],
            "other": [2, 2.5, 3, 3.5],
        }
        rolled = one.ask(rollout, [tokenizer, IDS, MASK], {"max_new_tokens": 3}, {})
        assert isinstance(rolled, Rollouts)
        expected = rollout(one.model, tokenizer, IDS, MASK, max_new_tokens=3)
        assert torch.equal(rolled.tokens, expected.tokens)
        assert torch.equal(rolled.ended, expected.ended)
    assert state(one) == (2, 0)


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda ids, mask: (ids + 1, mask),
        lambda ids, mask: (ids[:1], mask[:1]),
        lambda ids, mask: (ids.int(), mask),
        lambda ids, mask: (ids.view(1, 6), mask.view(1, 6)),
        lambda ids, mask: (ids, mask.index_fill(1, torch.tensor([2]), 0)),
    ],
    ids=["tokens", "batch", "dtype", "shape", "padding"],
)
def test_another_input_is_measured(
    change: Callable[..., tuple[Tensor, Tensor]], answers: DenseAnswers
) -> None:
    answers.ask(final_hidden, [IDS, MASK], {}, {})
    other = change(IDS, MASK)
    found = answers.ask(final_hidden, list(other), {}, {})
    assert torch.equal(found, final_hidden(answers.model, *other))
    assert state(answers) == (0, 2)


def test_settings_and_functions_are_told_apart(
    answers: DenseAnswers, tokenizer: PreTrainedTokenizerBase
) -> None:
    for scale in (1, 1.0, True, 2):
        answers.ask(halves, [], {"scale": scale}, {})
    samplings = [None, Sampling(0, [0, 1]), Sampling(1, [0, 1]), Sampling(0, [0, 2])]
    for sampling in samplings:
        answers.ask(
            rollout, [tokenizer, IDS, MASK], {"max_new_tokens": 2, "sampling": sampling}, {}
        )
    tokenizer.add_tokens(["another"])
    later = again(answers)
    later.ask(rollout, [tokenizer, IDS, MASK], {"max_new_tokens": 2, "sampling": None}, {})
    assert state(answers) == (0, 8)
    assert state(later) == (0, 1)


def test_what_is_no_plain_data_is_refused(answers: DenseAnswers) -> None:
    with pytest.raises(TypeError, match="A object cannot be a part of what is asked"):
        answers.ask(halves, [object()], {}, {})


@torch.no_grad()
def test_another_model_has_other_answers(
    answers: DenseAnswers, make_model: Callable[..., PreTrainedModel]
) -> None:
    answers.ask(final_hidden, [IDS, MASK], {}, {})
    changed = make_model("llama")
    changed.get_parameter("model.norm.weight")[3] += 1e-6
    for model in (changed, make_model("llama", seed=5), make_model("qwen2")):
        other = DenseAnswers(model, answers._root)
        found = other.ask(final_hidden, [IDS, MASK], {}, {})
        assert torch.equal(found, final_hidden(model, IDS, MASK))
        assert state(other) == (0, 1)
        assert other.folder != answers.folder


@torch.no_grad()
def test_numerics_and_versions_belong_to_the_key(
    answers: DenseAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask() -> None:
        answers.ask(final_hidden, [IDS, MASK], {}, {})

    ask()
    with torch.autocast("cpu", torch.bfloat16):
        ask()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    ask()
    monkeypatch.setattr(dense_answers, "_versions", lambda: {"torch": "another"})
    ask()
    assert state(answers) == (0, 4)


@torch.no_grad()
@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content.replace(b"sha256", b"sha257"),
    ],
    ids=["a bit", "half", "nothing", "a name"],
)
def test_a_damaged_file_is_measured_again(
    spoil: Callable[[bytes], bytes], answers: DenseAnswers, caplog: pytest.LogCaptureFixture
) -> None:
    expected = answers.ask(final_hidden, [IDS, MASK], {}, {})
    (path,) = answers.folder.iterdir()
    path.write_bytes(spoil(path.read_bytes()))
    with caplog.at_level("INFO"):
        for counts in ((0, 1), (1, 0)):
            later = again(answers)
            assert torch.equal(later.ask(final_hidden, [IDS, MASK], {}, {}), expected)
            assert state(later) == counts
    assert [f"{str(path)!r}, which" in text for text in caplog.messages] == [True]


@torch.no_grad()
def test_an_answer_under_the_name_of_another_is_damaged(answers: DenseAnswers) -> None:
    answers.ask(final_hidden, [IDS, MASK], {}, {})
    (first,) = answers.folder.iterdir()
    expected = answers.ask(final_hidden, [IDS + 1, MASK], {}, {})
    (second,) = set(answers.folder.iterdir()) - {first}
    second.write_bytes(first.read_bytes())
    assert torch.equal(answers.ask(final_hidden, [IDS + 1, MASK], {}, {}), expected)
    assert state(answers) == (0, 3)


@torch.no_grad()
def test_a_full_disk_ends_no_run(
    answers: DenseAnswers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dense_answers, "_RESERVE", 1 << 80)
    with caplog.at_level("INFO"):
        for _ in range(2):
            found = answers.ask(final_hidden, [IDS, MASK], {}, {})
            assert torch.equal(found, final_hidden(answers.model, IDS, MASK))
    assert len(caplog.messages) == 1
    assert "less than 2 GB of the disk would stay free" in caplog.messages[0]
    assert list(answers.folder.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_said(
    model: PreTrainedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRUNELIT_CACHE", str(tmp_path / "file"))
    with caplog.at_level("INFO"):
        assert open_answers(model) is None
    assert "What the dense model gives is not kept." in caplog.messages[0]
    assert open_answers(None) is None


@torch.no_grad()
def test_a_pair_asks_the_cache_for_the_dense_model_only(
    answers: DenseAnswers,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    pair = ModelPair(make_model("llama", seed=5), answers.model, tokenizer, answers=answers)
    for _ in range(2):
        for name, model in pair.models().items():
            found = pair.ask(name, final_hidden, IDS, MASK)
            assert torch.equal(found, final_hidden(model, IDS, MASK))
    pair.alone("dense").ask("pruned", final_hidden, IDS, MASK)
    pair.alone("pruned").ask("pruned", final_hidden, IDS, MASK)
    assert state(answers) == (2, 1)


def test_the_sentence_counts_tasks(answers: DenseAnswers, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        answers.tell()
        answers.ask(halves, [], {}, {})
        answers.counts = {"a": (3, 0), "b": (2, 1), "c": (0, 2)}
        answers.tell()
        text, size = caplog.messages
        answers.counts = {"a": (3, 0)}
        answers.tell()
        assert len(caplog.messages) == 3
    assert text.startswith("Dense answers of 1 of 3 tasks, and some of 1 more, were read ")
    (path,) = answers.folder.iterdir()
    assert size.startswith(f"What dense models gave takes {path.stat().st_size} bytes in '")
    assert size.endswith(f"{str(answers._root)!r}, which can be removed at any time.")


def test_a_model_that_does_not_change_is_hashed_once(
    answers: DenseAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[PreTrainedModel] = []

    def count(model: PreTrainedModel) -> str:
        hashed.append(model)
        return fingerprint(model)

    monkeypatch.setattr(dense_answers, "fingerprint", count)
    model, marks = answers.model, []
    weight = model.get_parameter("model.norm.weight")

    def a_step() -> None:
        with torch.no_grad():
            weight[3] += 1

    def a_step_in_inference() -> None:
        with torch.inference_mode():
            weight.mul_(2)

    def a_change_of_data() -> None:
        weight.data[5] = 0

    def another_tensor() -> None:
        model.model.norm.weight = torch.nn.Parameter(weight.detach().clone())

    def another_option() -> None:
        model.config.rms_norm_eps *= 2

    def another_module() -> None:
        model.model.layers[1].mlp.act_fn = torch.nn.Identity()

    changes = (a_step, a_step_in_inference, a_change_of_data, another_option, another_module)
    for change in (lambda: None, *changes):
        change()
        marks.append(again(answers).fingerprint)
        assert again(answers).fingerprint == marks[-1] == fingerprint(model)
    assert len(set(marks)) == len(hashed) == 6
    another_tensor()
    assert again(answers).fingerprint == marks[-1]
    assert len(hashed) == 7
