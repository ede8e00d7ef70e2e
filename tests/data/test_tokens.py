import logging
import random
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from prunelit.data.tokens import (
    SpecialTokens,
    decode,
    encode,
    encode_all,
    encode_start,
    encode_text,
    limit_ids,
    pack,
    pad,
    special_tokens,
    windows,
)
from prunelit.errors import InputError
from prunelit.tasks.prompting.choices import tokenise
from prunelit.tasks.prompting.text_template import TextTemplate

DOCUMENTS = [letter * length for letter, length in zip("abcde", [3, 9, 1, 7, 5], strict=True)]


def test_pack_cuts_every_document_of_the_drawn_order(tokenizer: PreTrainedTokenizerFast) -> None:
    total = sum(len(document) + 1 for document in DOCUMENTS)
    packed = pack(DOCUMENTS, tokenizer, sequences=1, length=total, seed=0)
    assert packed.dtype == torch.int64
    text = tokenizer.decode(packed[0])
    # Each document once, whole, and closed by the end-of-text token.
    assert sorted(text.split("<end>")) == sorted([*DOCUMENTS, ""])
    assert text.endswith("<end>")
    reshaped = pack(DOCUMENTS, tokenizer, sequences=total // 6, length=6, seed=0)
    assert reshaped.flatten().tolist() == packed[0, : total // 6 * 6].tolist()


def test_a_long_text_is_read_as_far_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["the", "there", "then", "rain", "rainbow", "and", "sand", "\u6771\u4eac", "e\u0301"]
    text = " ".join(random.Random(0).choices(words, k=30_000))
    inner = Tokenizer(models.BPE(unk_token="<unk>"))  # tokens may reach over spaces
    trainer = trainers.BpeTrainer(vocab_size=100, special_tokens=["<unk>"], show_progress=False)
    inner.train_from_iterator([text[:3000]], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    whole = encode(tokenizer, text)
    read: list[int] = []
    call = PreTrainedTokenizerFast.__call__

    def count(self: PreTrainedTokenizerFast, texts: list[str], **options: Any) -> Any:
        read.extend(map(len, texts))
        return call(self, texts, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", count)
    for wanted in (1, 10, 100, 500):
        read.clear()
        assert encode_start(tokenizer, text, wanted)[:wanted] == whole[:wanted]
        assert sum(read) < len(text) / 2
    for wanted in (None, len(whole), 2 * len(whole)):
        assert encode_start(tokenizer, text, wanted) == whole
    for documents in ([text], [text[:700], text[700:]]):
        every = windows(documents, tokenizer, length=20, limit=None)
        read.clear()
        assert windows(documents, tokenizer, length=20, limit=3).equal(every[:3])
        assert sum(read) < len(text) / 2


def test_pack_is_drawn_by_the_seed_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    def packed(seed: int) -> list[int]:
        return pack(DOCUMENTS, tokenizer, sequences=2, length=8, seed=seed).flatten().tolist()

    state = torch.get_rng_state()
    first = packed(0)
    torch.manual_seed(5)
    assert packed(0) == first
    assert any(packed(seed) != first for seed in (1, 2, 3))
    torch.set_rng_state(state)
    assert packed(0) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_pack_without_an_end_of_text_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None
    packed = pack(["ab", "ab"], tokenizer, sequences=1, length=4, seed=0)
    assert tokenizer.decode(packed[0]) == "abab"


def test_too_little_text_says_how_much_there_was(tokenizer: PreTrainedTokenizerFast) -> None:
    total = sum(len(document) + 1 for document in DOCUMENTS)
    with pytest.raises(
        InputError, match=rf"at least {total + 1} tokens for 1 .* 5 documents hold only {total}:"
    ):
        pack(DOCUMENTS, tokenizer, sequences=1, length=total + 1, seed=0)


@pytest.mark.parametrize(("sequences", "length"), [(0, 4), (4, 0), (-1, 4)])
def test_pack_refuses_nothing(
    tokenizer: PreTrainedTokenizerFast, sequences: int, length: int
) -> None:
    with pytest.raises(InputError, match="at least 1"):
        pack(DOCUMENTS, tokenizer, sequences=sequences, length=length, seed=0)


def test_windows_keep_the_order_and_drop_the_rest(tokenizer: PreTrainedTokenizerFast) -> None:
    found = windows(["abc", "defg"], tokenizer, length=4, limit=None)
    assert [tokenizer.decode(row) for row in found] == ["abc\n", "\ndef"]
    assert len(windows(["abc", "defg"], tokenizer, length=4, limit=1)) == 1
    spaced = windows(["ab", "cd"], tokenizer, length=5, limit=None, separator=" ")
    assert tokenizer.decode(spaced[0]) == "ab cd"


def test_windows_refuse_too_little_text(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="one window of 4 tokens but the 1 documents hold only 3"):
        windows(["abc"], tokenizer, length=4, limit=None)
    with pytest.raises(InputError, match="`length` of at least 2 but got 1"):
        windows(["abc"], tokenizer, length=1, limit=None)


def test_encode_adds_no_special_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<end> $A", special_tokens=[("<end>", 0)]
    )
    assert tokenizer("abcd")["input_ids"][0] == 0
    assert tokenizer.decode(encode(tokenizer, "abcd")) == "abcd"


def test_text_longer_than_the_models_length_is_no_reason_to_warn(
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer.model_max_length = 2
    assert len(encode(tokenizer, "abcd")) == 4
    assert not caplog.records
    tokenizer("abcd")
    assert "longer than" in caplog.text


@pytest.mark.parametrize("left", [True, False])
def test_pad(left: bool) -> None:
    batch = pad([[5, 6, 7], [8]], pad_id=9, left=left)
    row = [9, 9, 8] if left else [8, 9, 9]
    mask = [0, 0, 1] if left else [1, 0, 0]
    assert batch["input_ids"].tolist() == [[5, 6, 7], row]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], mask]


def test_pad_an_empty_sequence() -> None:
    assert pad([[], [1]], pad_id=0, left=True)["attention_mask"].tolist() == [[0], [1]]


def test_a_text_by_itself_begins_as_the_tokenizer_has_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    bare = encode(tokenizer, "ab")
    assert special_tokens(tokenizer) == SpecialTokens([], [])
    assert encode_text(tokenizer, "ab") == bare
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<end> $A <end>", special_tokens=[("<end>", 0)]
    )
    assert special_tokens(tokenizer) == SpecialTokens([0], [0])
    assert encode_text(tokenizer, "ab") == [0, *bare]
    # Once, even if a template has added it.
    assert encode_text(tokenizer, "<end>ab") == [0, *bare]
    assert encode_text(tokenizer, "") == [0]
    for text in ("ab", ""):
        assert encode_text(tokenizer, text, closed=True) == tokenizer(text)["input_ids"]
    assert encode_text(tokenizer, "<end>ab<end>", closed=True) == [0, *bare, 0]


WORDS = {"<s>": 0, "</s>": 1, "<unk>": 2, "x": 3, "y": 4}


def letters(template: str, unknown: str | None, vocabulary: dict[str, int]) -> object:
    """A tokenizer of a few letters, without the letter a."""
    if unknown is None:
        inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    else:
        inner = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=unknown))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("unknown", [None, "<unk>", "<s>"])
@pytest.mark.parametrize(
    ("template", "before", "after"),
    [
        ("$A", [], []),
        ("<s> $A", [0], []),
        ("$A </s>", [], [1]),
        ("<s> $A </s>", [0], [1]),
        ("<s> <s> $A <s>", [0, 0], [0]),
    ],
)
def test_special_tokens_are_those_of_the_tokenizer_with_any_vocabulary(
    template: str, before: list[int], after: list[int], unknown: str | None
) -> None:
    tokenizer = letters(template, unknown, WORDS)
    assert encode_text(tokenizer, "x y") == [*before, 3, 4]
    assert special_tokens(tokenizer) == SpecialTokens(before, after)
    assert encode_text(tokenizer, "x y", closed=True) == tokenizer("x y")["input_ids"]


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("form", ["space before", "metaspace", "byte fallback"])
@pytest.mark.parametrize("template", ["<s> $A", "$A </s>", "<s> $A </s>"])
def test_texts_are_read_as_by_tokenizers_with_spaces_and_bytes_of_their_own(
    form: str, template: str, padding_side: str
) -> None:
    bytes_, letters_ = [f"<0x{n:02X}>" for n in range(256)], "\u2581bcdexy.?:"
    names = ["<s>", "</s>", *(sorted(pre_tokenizers.ByteLevel.alphabet()))]
    if form != "space before":
        names = ["<s>", "</s>", "<unk>", *bytes_, *letters_]
    options = {} if form == "space before" else {"unk_token": "<unk>", "byte_fallback": True}
    vocabulary = {name: n for n, name in enumerate(names)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], **options))
    if form == "space before":
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif form == "metaspace":
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        inner.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    inner.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        padding_side=padding_side,
    )
    special = SpecialTokens([0] * template.startswith("<s>"), [1] * template.endswith("</s>"))
    assert special_tokens(tokenizer) == special
    for text in ("a", "be cd", "?", ""):
        own = tokenizer(text)["input_ids"]
        assert encode_text(tokenizer, text, closed=True) == own
        assert encode_text(tokenizer, text) == own[: len(own) - len(special.after)]
    # The end of a cut text stays the token that the tokenizer ends a text by.
    cut = TextTemplate("b {text} c").tokens(tokenizer, "x" * 20, 12)
    assert len(cut) == 12
    assert cut[len(cut) - len(special.after) :] == special.after


def test_special_tokens_that_cannot_be_told_from_the_text_are_refused() -> None:
    tokenizer = letters("<s> $A", "<s>", {"<s>": 0, "</s>": 1})
    with pytest.raises(InputError, match=r"special tokens that .* cannot be told"):
        special_tokens(tokenizer)


def test_a_vocabulary_without_an_unknown_token_reads_its_own_words() -> None:
    words = {"<s>": 0, "</s>": 1, "x": 2, "y": 3}
    tokenizer = letters("<s> $A", "none", words)
    assert encode_text(tokenizer, "x y") == [0, 2, 3]
    with pytest.raises(InputError, match=r"cannot read the text 'x a': \S"):
        encode_all(tokenizer, ["x y", "x a"])


def test_half_of_a_surrogate_pair_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"cannot read the text 'a\\ud83d': \S"):
        encode_all(tokenizer, ["a", "a\ud83d"])


def test_ids_that_the_model_does_not_embed_are_refused_everywhere() -> None:
    tokenizer = letters("$A", "<unk>", WORDS)
    tokenizer.add_special_tokens({"bos_token": "<begin>", "eos_token": "<stop>"})  # 5 and 6
    limit_ids(tokenizer, 5)
    assert encode(tokenizer, "x y") == [3, 4]
    with pytest.raises(InputError, match=r"the 5 tokens .* 'x <stop>' has the token '<stop>'"):
        encode(tokenizer, "x <stop>")
    with pytest.raises(InputError, match=r"joined by the token '<stop>' with the id 6"):
        pack(["x y x y"], tokenizer, sequences=1, length=2, seed=0)
    with pytest.raises(InputError, match=r"begins with the token '<begin>' with the id 5"):
        windows(["x y x y"], tokenizer, length=2, limit=None, bos=True)
    with pytest.raises(InputError, match=r"an empty context is the token '<begin>'"):
        tokenise(tokenizer, [("", "x")])


@pytest.mark.parametrize(
    ("bos", "adds", "start"),
    [
        (None, False, []),
        (None, True, [0]),
        (False, True, []),
        (True, False, [0]),
        (True, True, [0]),
    ],
)
def test_windows_and_sequences_begin_with_bos(bos: bool | None, adds: bool, start: list) -> None:
    tokenizer = letters("<s> $A" if adds else "$A", "<unk>", WORDS)
    text = "x x y y x y x y y y x x"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    new = 4 - len(start)
    found = windows([text], tokenizer, length=4, limit=2, bos=bos)
    assert found.tolist() == [start + ids[:new], start + ids[new : 2 * new]]
    packed = pack([text], tokenizer, sequences=2, length=4, seed=0, bos=bos)
    assert packed.tolist() == found.tolist()


def test_bos_is_refused_where_there_is_none(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="a tokenizer with a BOS token for `bos: true`"):
        windows(["abc"], tokenizer, length=2, limit=None, bos=True)
    with pytest.raises(InputError, match="`length` above 1, the number of tokens that begin"):
        pack(["x"], letters("<s> $A", "<unk>", WORDS), sequences=1, length=1, seed=0)


def test_decoded_text_has_every_space_and_special_tokens_where_asked(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.clean_up_tokenization_spaces = True
    ids = [*encode(tokenizer, "a , b"), 0]
    assert decode(tokenizer, ids) == "a , b"
    assert decode(tokenizer, ids, special=True) == "a , b<end>"
