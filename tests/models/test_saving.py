import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from prunelit import PruningReport, load_pretrained, prune, save_pretrained
from prunelit.errors import InputError
from prunelit.models.report_file import read_report
from prunelit.models.saving import check_unchanged, check_writable
from prunelit.pruners import Wanda
from prunelit.sparsity import Unstructured

MakeModel = Callable[..., PreTrainedModel]


@pytest.fixture
def report(model: PreTrainedModel, input_ids: Tensor) -> PruningReport:
    """The report of pruning `model`."""
    return prune(model, Wanda(Unstructured(0.5)), input_ids)


def content(folder: Path) -> dict[str, bytes]:
    """Every file in `folder` and its subfolders, including hidden files."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@torch.no_grad()
def test_stock_transformers_loads_equal_logits(
    make_model: MakeModel, family: str, tokenizer: Tokenizer, input_ids: Tensor, tmp_path: Path
) -> None:
    model = make_model(family)
    report = prune(model, Wanda(Unstructured(0.5)), input_ids)
    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "pruned", output_loading_info=True
    )
    assert not any(info.values())
    assert type(loaded) is type(model)
    assert torch.equal(loaded.eval()(input_ids).logits, model(input_ids).logits)
    ours, _ = load_pretrained(str(tmp_path / "pruned"))
    assert torch.equal(ours(input_ids).logits, model(input_ids).logits)
    assert sum(int((p == 0).sum()) for p in loaded.parameters()) == report.zeros


def test_tied_weights_stay_tied_and_are_stored_once(
    model: PreTrainedModel, tokenizer: Tokenizer, report: PruningReport, tmp_path: Path
) -> None:
    folder = tmp_path / "pruned"
    save_pretrained(model, tokenizer, folder, report)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    bytes_of_weights = 4 * report.parameters
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert bytes_of_weights < size < bytes_of_weights + 10_000


def test_tokenizer_and_report_are_in_the_folder(
    model: PreTrainedModel, tokenizer: Tokenizer, report: PruningReport, tmp_path: Path
) -> None:
    save_pretrained(model, tokenizer, tmp_path / "a" / "b" / "pruned", report)
    folder = tmp_path / "a" / "b" / "pruned"
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded("hello")["input_ids"] == tokenizer("hello")["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template
    written = json.loads((folder / "pruning.json").read_text())
    names = {path.name for path in folder.iterdir()}
    assert written.pop("content").keys() == names
    assert written == report.as_dict()
    assert [path.name for path in folder.parent.iterdir()] == ["pruned"]


def test_folder_is_as_readable_as_any_other_new_one(
    model: PreTrainedModel, tokenizer: Tokenizer, report: PruningReport, tmp_path: Path
) -> None:
    parent = tmp_path / "open"
    parent.mkdir()
    parent.chmod(0o777)
    save_pretrained(model, tokenizer, parent / "pruned", report)
    (parent / "plain").mkdir()
    modes = {stat.S_IMODE((parent / name).stat().st_mode) for name in ("pruned", "plain")}
    assert len(modes) == 1


def test_relative_folder(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    report: PruningReport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_pretrained(model, tokenizer, "pruned", report)
    assert (tmp_path / "pruned" / "pruning.json").is_file()


def test_pruned_model_that_was_there_is_replaced(
    model: PreTrainedModel, tokenizer: Tokenizer, report: PruningReport, tmp_path: Path
) -> None:
    folder = tmp_path / "pruned"
    save_pretrained(model, tokenizer, folder, report)
    (folder / "leftover.txt").touch()
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    report.versions["note"] = "second"
    save_pretrained(model, tokenizer, folder, report)
    assert not (folder / "leftover.txt").exists()
    second = read_report(folder)
    assert second is not None
    assert second["versions"]["note"] == "second"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded.model.norm.weight, model.model.norm.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("part", ["model", "tokenizer", "report"])
def test_interrupted_save_leaves_nothing_and_keeps_the_old_folder(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    report: PruningReport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    part: str,
) -> None:
    def write_half(folder: Path, *_: object, **__: object) -> None:
        (Path(folder) / "half.bin").write_bytes(b"0")
        raise error

    def fail() -> None:
        raise error

    save_pretrained(model, tokenizer, tmp_path / "old", report)
    before = content(tmp_path)
    if part == "report":
        monkeypatch.setattr(report, "as_dict", fail)
    else:
        broken = model if part == "model" else tokenizer
        monkeypatch.setattr(broken, "save_pretrained", write_half)
    for name in ("old", "new"):
        with pytest.raises(type(error)):
            save_pretrained(model, tokenizer, tmp_path / name, report)
    assert content(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_old_folder_is_put_back_when_the_new_one_cannot_take_its_place(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    report: PruningReport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rename = Path.rename

    def refuse_the_new_one(path: Path, target: Path) -> Path:
        if path.name == ".pruned.partial":
            raise OSError("no space left")
        return rename(path, target)

    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    before = content(tmp_path)
    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with pytest.raises(OSError, match="no space left"):
        save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    assert content(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


def test_nan_in_the_report_is_not_written_as_broken_json(
    model: PreTrainedModel, tokenizer: Tokenizer, report: PruningReport, tmp_path: Path
) -> None:
    report.blocks[0].seconds = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    assert not list(tmp_path.iterdir())


def test_foreign_folder_or_file_is_refused_untouched(
    model: PreTrainedModel, tokenizer: Tokenizer, report: PruningReport, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    (tmp_path / "note").write_text("precious")
    before = content(tmp_path)
    for name in ("thesis", "note"):
        with pytest.raises(InputError, match=rf"{name}' exists and holds no pruning\.json"):
            save_pretrained(model, tokenizer, tmp_path / name, report)
    assert content(tmp_path) == before


def test_empty_folder_is_taken(
    model: PreTrainedModel, tokenizer: Tokenizer, report: PruningReport, tmp_path: Path
) -> None:
    (tmp_path / "pruned").mkdir()
    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    assert read_report(tmp_path / "pruned")


def test_place_that_cannot_be_written_is_found_out_early(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Nothing can be written into"):
        check_writable(tmp_path / "file" / "pruned")


def test_check_writable_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "runs" / "pruned")
    assert not list(tmp_path.iterdir())


def test_no_report_where_there_is_no_pruned_model(folder: Path, tmp_path: Path) -> None:
    assert read_report(folder) is None
    assert read_report(tmp_path / "missing") is None


def test_broken_report_is_named(tmp_path: Path) -> None:
    (tmp_path / "pruning.json").write_text('{"recipe": ')
    with pytest.raises(InputError, match=r"pruning\.json' is not valid JSON"):
        read_report(tmp_path)


def test_files_of_a_killed_run_are_removed(
    model: PreTrainedModel, tokenizer: Tokenizer, report: PruningReport, tmp_path: Path
) -> None:
    for name in (".pruned.partial", ".pruned.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half.bin").touch()
    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]
    assert not (tmp_path / "pruned" / "half.bin").exists()


@pytest.mark.parametrize("value", ["NaN", "1e999", "null"])
def test_a_report_that_was_edited_is_noticed(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    report: PruningReport,
    tmp_path: Path,
    value: str,
) -> None:
    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    path = tmp_path / "pruned" / "pruning.json"
    path.write_text(path.read_text().replace('"sparsity": ', f'"sparsity": {value}, "other": ', 1))
    edited = read_report(tmp_path / "pruned")
    assert edited is not None
    with pytest.raises(InputError, match="was changed after it was written: pruning"):
        check_unchanged(tmp_path / "pruned", edited)


def test_the_report_of_another_model_is_refused_before_anything_is_written(
    make_model: MakeModel,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    report: PruningReport,
    tmp_path: Path,
) -> None:
    for other in (make_model("gpt2"), make_model("llama", seed=1)):
        with pytest.raises(InputError, match=r"The report is not that of this model: .*'"):
            save_pretrained(other, tokenizer, tmp_path / "pruned", report)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.add_(1)
    with pytest.raises(InputError, match=r"768 removed weights of 'model\.layers\.1.* are not 0"):
        save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    assert not list(tmp_path.iterdir())


def test_a_model_may_be_saved_in_another_dtype(
    model: PreTrainedModel, tokenizer: Tokenizer, report: PruningReport, tmp_path: Path
) -> None:
    save_pretrained(model.half(), tokenizer, tmp_path / "pruned", report)
    written = read_report(tmp_path / "pruned")
    assert written is not None
    assert written["stored_bytes"] == 2 * report.parameters
    assert written["bytes"] == 4 * report.parameters


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x" * 250, "lat\udcff", "loop"])
def test_a_name_that_cannot_be_written_is_refused_before_work(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    report: PruningReport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.setattr(model, "save_pretrained", lambda *_: pytest.fail("written"))
    for parent in (tmp_path, "."):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=r"NUL|too long|UTF-8|leads to itself"):
            save_pretrained(model, tokenizer, f"{parent}/{name}", report)
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]
