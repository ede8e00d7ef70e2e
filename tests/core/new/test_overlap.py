"""Texts in the calibration text, against a plain search."""

import random

from prunelit.core.new.overlap import find_overlap


def test_equal_texts_and_texts_in_texts() -> None:
    documents = ["Where  is my\norder number 17 today?", "short", "a whole document of a few words"]
    items = [
        "is my order number 17 today?",  # in a document
        "Where is my order number 17 today?",  # equal
        "short",  # equal, though it is short
        "order number",  # too short to mean anything
        "see: a whole document of a few words, or not",  # a comma is part of a word
        "see: a whole document of a few words or not",  # holds a document
        "",
    ]
    assert find_overlap(items, documents) == [0, 1, 2, 5]
    assert find_overlap(items, []) == []


def test_it_is_a_plain_search() -> None:
    draw = random.Random(0)

    def text(least: int, most: int) -> str:
        return " ".join(draw.choices(["lorem", "ipsum", "dolor"], k=draw.randint(least, most)))

    items, documents = [text(1, 9) for _ in range(60)], [text(1, 12) for _ in range(9)]

    def holds(inner: str, outer: str) -> bool:
        enough = len(inner) >= 20 and len(inner.split()) >= 4
        return inner == outer or (enough and f" {inner} " in f" {outer} ")

    plain = [
        number
        for number, item in enumerate(items)
        if any(holds(item, document) or holds(document, item) for document in documents)
    ]
    assert find_overlap(items, documents) == plain
    assert 0 < len(plain) < len(items)


def test_many_texts_that_begin_alike_take_no_time() -> None:
    begin = "Customer wrote to us: "
    items = [f"{begin}{n} please help me" for n in range(5000)]
    assert find_overlap(items, [f"{begin}{n} other text" for n in range(5000)]) == []
