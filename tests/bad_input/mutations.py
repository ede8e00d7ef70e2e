"""Ways to spoil a file, drawn by a generator of random numbers."""

import copy
import csv
import gzip
import io
import json
import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
import yaml


@dataclass
class Mutation:
    """A spoiled file.

    Args:
        words: what was done.
        content: of the file; None if it is missing.
        names: keys or values of which a message about it names one; empty for those of the file.
        harmless: the results stay as they are.
        wrong: it must be refused.
    """

    words: str
    content: bytes | None
    names: list[str] = field(default_factory=list)
    harmless: bool = False
    wrong: bool = False


Mutator = Callable[[Random, bytes], Mutation]

# --- bytes


def truncated(random: Random, content: bytes) -> Mutation:
    """Cut off the end."""
    length = random.randrange(1, len(content))
    return Mutation(f"cut off after {length} bytes", content[:length])


def flipped(random: Random, content: bytes) -> Mutation:
    """Change some bytes."""
    spoiled = bytearray(content)
    places = [random.randrange(len(spoiled)) for _ in range(random.choice((1, 1, 8)))]
    for place in places:
        spoiled[place] ^= random.randrange(1, 256)
    return Mutation(f"other bytes at {places}", bytes(spoiled))


def flipped_at_the_begin(random: Random, content: bytes) -> Mutation:
    """Change a byte of the first few, where many formats have their header."""
    place = random.randrange(min(len(content), 512))
    value = random.choice((0, 1, 0x7F, 0xFF, content[place] ^ 1))
    return Mutation(
        f"the byte {place} is {value}", content[:place] + bytes([value]) + content[place + 1 :]
    )


def overwritten(random: Random, content: bytes) -> Mutation:
    """Overwrite up to 64 bytes."""
    place = random.randrange(len(content))
    length = min(64, len(content) - place)
    return Mutation(
        f"{length} random bytes at {place}",
        content[:place] + random.randbytes(length) + content[place + length :],
    )


STRANGE = {
    "an empty file": b"",
    "only spaces": b" \n\n",
    "a page of HTML": b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n",
    "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "zeros": bytes(300),
    "a zip file": b"PK\3\4" + bytes(100),
    "a gzipped file": gzip.compress(b"text"),
    "lists in lists": b"[" * 100_000,
    "objects in objects": b'{"a":' * 100_000,
    "a number of 5000 digits": b"9" * 5000,
    "null": b"null",
    "a text": b'"text"',
    "a number": b"3",
    "a list": b"[1, 2]",
    "an empty object": b"{}",
}


def replaced(random: Random, content: bytes) -> Mutation:
    """Put something else in the place of the file."""
    words = random.choice(list(STRANGE))
    return Mutation(words, STRANGE[words])


def missing(random: Random, content: bytes) -> Mutation:
    """Remove the file."""
    return Mutation("no file", None)


BYTES: list[Mutator] = [truncated, flipped, overwritten, replaced, missing]

# --- text


def inserted(random: Random, content: bytes) -> Mutation:
    """Insert bytes that are no text, or strange text."""
    piece = random.choice((b"\xe4", b"\xff\xfe", b"\0", b"\xed\xa0\x80", b"\x1b[31m", b"\t", b'"'))
    place = random.randrange(len(content) + 1)
    return Mutation(f"{piece!r} at {place}", content[:place] + piece + content[place:])


def encoded(random: Random, content: bytes) -> Mutation:
    """Use another encoding."""
    name = random.choice(("utf-16", "utf-16-le", "utf-32", "latin-1"))
    text = content.decode() + ("" if name.startswith("utf") else "\n# é")
    return Mutation(f"in {name}", text.encode(name, errors="replace"))


def renumbered(random: Random, content: bytes) -> Mutation:
    """Put a strange number in the place of a number."""
    places = list(re.finditer(rb"(?<![\w.])\d+(?![\w.])", content))
    if not places:
        return inserted(random, content)
    place = random.choice(places)
    number = random.choice((b"9" * 5000, b"-1", b"1e999", b"18446744073709551616", b"0x10", b"1_0"))
    return Mutation(
        f"{number[:20]!r} in the place of {place[0]!r}",
        content[: place.start()] + number + content[place.end() :],
    )


def lined(random: Random, content: bytes) -> Mutation:
    """Remove, repeat, or exchange lines."""
    lines = content.splitlines(keepends=True)
    one, other = random.randrange(len(lines)), random.randrange(len(lines))
    how = random.choice(("removed", "repeated", "exchanged"))
    if how == "removed":
        del lines[one]
    elif how == "repeated":
        lines.insert(other, lines[one])
    else:
        lines[one], lines[other] = lines[other], lines[one]
    return Mutation(f"line {one + 1} {how} ({other + 1})", b"".join(lines))


def with_windows_ends(random: Random, content: bytes) -> Mutation:
    """Write it as an editor under Windows does."""
    return Mutation("lines end with CR LF", content.replace(b"\n", b"\r\n"), harmless=True)


def with_mark(random: Random, content: bytes) -> Mutation:
    """Put a byte order mark before it."""
    return Mutation("a byte order mark", b"\xef\xbb\xbf" + content, harmless=True)


def with_last_line(random: Random, content: bytes) -> Mutation:
    """Add empty lines at the end, or take the last line end away."""
    if random.random() < 0.5:
        return Mutation("empty lines at the end", content + b"\n\n", harmless=True)
    return Mutation("no line end at the end", content.rstrip(b"\n"), harmless=True)


TEXT: list[Mutator] = [*BYTES, inserted, encoded, renumbered, lined]

# --- values in a tree of dictionaries and lists

VALUES: list[Any] = [
    *(None, [], {}, "", "text", -1, 0, 1, 2**70, -(2**70), math.nan, math.inf, True, False),
    *(1.5, [None], {"a": 1}, "x" * 5000, "a\0b", "../..", "é\n", [[]], "3", "null"),
]


def change_tree(random: Random, tree: Any) -> tuple[Any, str, list[str], str]:
    """Change one value of a tree.

    Returns:
        The new tree, what was done, the keys on the way with the new value, and the kind of change.
    """
    tree = copy.deepcopy(tree)
    keys: list[Any] = []
    parent, node = None, tree
    while isinstance(node, dict | list) and node:
        key = random.choice(list(node)) if isinstance(node, dict) else random.randrange(len(node))
        keys.append(key)
        parent, node = node, node[key]
        if random.random() < 0.25:
            break
    if parent is None:
        return random.choice(VALUES), "another value", [], "value"
    how = random.choice(("drop", "value", "value", "value", "rename", "unknown", "wrap", "as text"))
    place, value = ".".join(map(str, keys)), random.choice(VALUES)
    names = [key for key in map(str, keys) if not key.isdecimal()]
    if how in ("rename", "unknown") and not isinstance(parent, dict):
        how = "value"
    if how == "drop":
        del parent[keys[-1]]
        return tree, f"no {place}", names, how
    if how == "rename":
        parent[f"{keys[-1]}x"] = parent.pop(keys[-1])
        return tree, f"{place} renamed", names, how
    if how == "unknown":
        parent["unknown"] = value
        return tree, f"unknown key beside {place}", [*names, "unknown"], how
    value = [node] if how == "wrap" else str(node) if how == "as text" else value
    parent[keys[-1]] = value
    return tree, f"{place} = {value!r:.60}", [*names, str(value)[:60]], how


def json_values(random: Random, content: bytes) -> Mutation:
    """Change a value of a JSON file."""
    tree, words, names, _ = change_tree(random, json.loads(content))
    return Mutation(words, json.dumps(tree).encode(), names)


JSON: list[Mutator] = [*TEXT, *[json_values] * 8]


def yaml_values(random: Random, content: bytes) -> Mutation:
    """Change a value of a YAML file."""
    tree, words, names, how = change_tree(random, yaml.safe_load(content))
    text = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False)
    return Mutation(words, text.encode(), names, wrong=how in ("rename", "unknown"))


def bomb(levels: int) -> str:
    """Return YAML whose aliases stand for 10 to the power of `levels` values."""
    lines = ["a0: &a0 [x]\n"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, levels)]
    return "".join(lines)


def yaml_syntax(random: Random, content: bytes) -> Mutation:
    """Use a feature of YAML that is no configuration."""
    text = content.decode()
    first = text.partition(":")[0]
    choices = {
        "a circle": f"{first}: &a\n  source: *a\n",
        "a circle in a list": f"{first}: &a [1, *a]\n",
        "a bomb": bomb(9) + text,
        "a merged bomb": bomb(9) + "b: {<<: *a0}\n" + text,
        "an unknown alias": text + "more: *nowhere\n",
        "a key twice": text + text[: text.index("\n") + 1].rstrip() + " 3\n",
        "two documents": text + "---\n" + text,
        "an object": "!!python/object/apply:os.system ['touch x']\n",
        "an object as a value": f"{first}: !!python/name:os.system\n",
        "a set": f"{first}: !!set {{a, b}}\n",
        "bytes": f"{first}: !!binary R0lGODlh\n",
        "a date": f"{first}: 2024-13-45\n",
        "a date as a key": "2024-01-01: 3\n" + text,
        "a list as a key": "? [a, b]\n: 3\n" + text,
        "null as a key": "null: 3\n" + text,
        "a tab": text.replace("  ", "\t", 1),
        "deep lists": f"{first}: " + "[" * 5000 + "]" * 5000 + "\n",
        "deep objects": f"{first}: " + "{a: " * 5000 + "}" * 5000 + "\n",
        "no end of a quote": f'{first}: "abc\n',
        "a tag": f"{first}: !own 3\n",
        "a directive": "%YAML 9.9\n---\n" + text,
    }
    words = random.choice(list(choices))
    return Mutation(words, choices[words].encode(), wrong=words not in ("a tab", "a directive"))


YAML: list[Mutator] = [
    *(*TEXT, with_windows_ends, with_mark, with_last_line),
    *([yaml_values] * 12 + [yaml_syntax] * 3),
]

# --- rows


def jsonl_values(random: Random, content: bytes) -> Mutation:
    """Change a value of a row."""
    lines = content.splitlines()
    number = random.randrange(len(lines))
    tree, words, names, how = change_tree(random, json.loads(lines[number]))
    lines[number] = json.dumps(tree).encode()
    return Mutation(
        f"row {number}: {words}", b"\n".join(lines) + b"\n", names, harmless=how == "unknown"
    )


def jsonl_columns(random: Random, content: bytes) -> Mutation:
    """Change a column in every row."""
    rows = [json.loads(line) for line in content.splitlines()]
    name, value = random.choice(list(rows[0])), random.choice(VALUES)
    for row in rows:
        row[name] = value
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return Mutation(f"every {name} = {value!r:.40}", text.encode(), [name])


JSONL: list[Mutator] = [
    *(*TEXT, with_windows_ends, with_mark, with_last_line),
    *([jsonl_values] * 8 + [jsonl_columns] * 3),
]


def to_csv(rows: list[list[str]], delimiter: str, **options: Any) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter, lineterminator="\n", **options).writerows(rows)
    return stream.getvalue().encode()


def csv_cells(random: Random, content: bytes) -> Mutation:
    """Change cells or the form of a table."""
    text = content.decode()
    delimiter = "\t" if "\t" in text.splitlines()[0] else ","
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    row, column = random.randrange(len(rows)), random.randrange(len(rows[0]))
    other = {"\t": ",", ",": ";"}[delimiter]
    choices: dict[str, Callable[[], bytes]] = {}

    def cell(value: str) -> Callable[[], bytes]:
        def change() -> bytes:
            rows[row][column] = value
            return to_csv(rows, delimiter)

        return change

    for value in ("", " ", "-1", "1e999", "nan", '"', "a\nb", "x" * 200_000, "9" * 5000, "٣"):
        choices[f"cell {row}, {column} = {value!r:.20}"] = cell(value)
    choices["an unknown column"] = lambda: to_csv(
        [[*cells, "more" if n else "unknown"] for n, cells in enumerate(rows)], delimiter
    )
    choices["every cell quoted"] = lambda: to_csv(rows, delimiter, quoting=csv.QUOTE_ALL)
    choices["columns exchanged"] = lambda: to_csv([cells[::-1] for cells in rows], delimiter)
    choices["another delimiter"] = lambda: to_csv(rows, other)
    choices["a cell too few"] = lambda: to_csv(
        [cells[: len(cells) - (n == row)] for n, cells in enumerate(rows)], delimiter
    )
    choices["a cell too many"] = lambda: to_csv(
        [[*cells, *["x"] * (n == row)] for n, cells in enumerate(rows)], delimiter
    )
    choices["a name twice"] = lambda: to_csv([[rows[0][0]] * len(rows[0]), *rows[1:]], delimiter)
    choices["a name less"] = lambda: to_csv([["other", *rows[0][1:]], *rows[1:]], delimiter)
    choices["only names"] = lambda: to_csv(rows[:1], delimiter)
    choices["no names"] = lambda: to_csv(rows[1:], delimiter)
    words = random.choice(list(choices))
    harmless = words in ("an unknown column", "every cell quoted", "columns exchanged")
    return Mutation(words, choices[words](), harmless=harmless)


CSV: list[Mutator] = [
    *(*TEXT, with_windows_ends, with_mark, with_last_line),
    *([csv_cells] * 10),
]


def parquet_columns(random: Random, content: bytes) -> Mutation:
    """Change the columns or the form of a table."""
    table = pyarrow.parquet.read_table(io.BytesIO(content))
    name, rows = random.choice(table.column_names), table.num_rows
    place = table.column_names.index(name)
    columns = {
        "null": pyarrow.nulls(rows),
        "numbers": pyarrow.array(range(rows)),
        "NaN": pyarrow.array([math.nan] * rows),
        "lists": pyarrow.array([["a"]] * rows),
        "bytes": pyarrow.array([b"\xff"] * rows),
        "objects": pyarrow.array([{"a": 1}] * rows),
        "dates": pyarrow.array([0] * rows, pyarrow.date32()),
        "empty texts": pyarrow.array([""] * rows),
    }
    options: dict[str, Any] = {}
    words = random.choice(
        [*columns, "no", "renamed", "twice", "no rows", "small groups", "gzip", "dictionary"]
    )
    if words in columns:
        table = table.set_column(place, name, columns[words])
    elif words == "no":
        table = table.drop_columns([name])
    elif words == "renamed":
        table = table.rename_columns([f"{n}x" if n == name else n for n in table.column_names])
    elif words == "twice":
        table = table.append_column(name, columns["null"])
    elif words == "no rows":
        table = table.slice(0, 0)
    elif words == "dictionary":
        table = table.set_column(place, name, table.column(name).dictionary_encode())
    else:
        options = {"row_group_size": 1} if words == "small groups" else {"compression": "gzip"}
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table, stream, **options)
    harmless = words in ("small groups", "gzip", "dictionary")
    return Mutation(f"{name}: {words}", stream.getvalue(), [name], harmless=harmless)


PARQUET: list[Mutator] = [*BYTES, flipped_at_the_begin, *[parquet_columns] * 6]


def flipped_at_the_end(random: Random, content: bytes) -> Mutation:
    """Change a byte of the last few, where parquet has its directory."""
    place = len(content) - 1 - random.randrange(min(len(content), 600))
    value = random.choice((0, 1, 0x7F, 0xFF, content[place] ^ 1))
    return Mutation(
        f"the byte {place} is {value}", content[:place] + bytes([value]) + content[place + 1 :]
    )


PARQUET += [flipped_at_the_end] * 3

# --- files of a model


HEADER = [
    *("length", "dtype", "shape", "overlap", "beyond", "missing", "more", "renamed", "value"),
    *("metadata", "no metadata", "negative", "hole"),
]


def safetensors_header(random: Random, content: bytes) -> Mutation:
    """Change the header of a safetensors file."""
    length = struct.unpack("<Q", content[:8])[0]
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    one, other = random.sample([name for name in header if name != "__metadata__"], 2)
    wrong, given = True, None
    words = random.choice(HEADER)
    entry = header[one]
    if words == "length":
        given = random.choice((0, 1, length - 1, length + 1, len(content), 2**40, 2**64 - 1))
    elif words == "dtype":
        entry["dtype"] = random.choice(("F16", "I64", "U8", "BOOL", "F7", 3, None))
    elif words == "shape":
        entry["shape"] = random.choice(([1], [], [2**63], [-1, 2], None, [*entry["shape"], 2]))
    elif words == "overlap":
        entry["data_offsets"] = header[other]["data_offsets"]
    elif words == "beyond":
        entry["data_offsets"] = [n + len(content) for n in entry["data_offsets"]]
    elif words == "negative":
        entry["data_offsets"] = [-8, 8]
    elif words == "missing":
        del header[one]
    elif words == "renamed":
        header[f"{one}x"] = header.pop(one)
    elif words == "more":
        header["unknown"] = {"dtype": "F32", "shape": [0], "data_offsets": [len(rest)] * 2}
        wrong = False
    elif words == "hole":
        rest += bytes(16)
    elif words == "metadata":
        header["__metadata__"] = random.choice(({"a": "b"}, {"format": "tf"}, 3, {"a": 3}))
        wrong = False
    elif words == "no metadata":
        header.pop("__metadata__", None)
        wrong = False
    else:
        header, words, _, _ = change_tree(random, header)
        wrong = False
    text = json.dumps(header).encode()
    begin = struct.pack("<Q", len(text) if given is None else given)
    return Mutation(f"{one}: {words}", begin + text + rest, wrong=wrong)


def safetensors_values(random: Random, content: bytes) -> Mutation:
    """Change values of a tensor to NaN or infinity."""
    length = struct.unpack("<Q", content[:8])[0]
    place = 8 + length + 4 * random.randrange((len(content) - 8 - length) // 4)
    value = random.choice((math.nan, math.inf, -math.inf))
    return Mutation(
        f"{value} at {place}",
        content[:place] + struct.pack("<f", value) + content[place + 4 :],
        wrong=True,
    )


SAFETENSORS: list[Mutator] = [
    *(*BYTES, flipped_at_the_begin),
    *([safetensors_header] * 8 + [safetensors_values]),
]

TEMPLATES = {
    "loops": "{% for i in range(10 ** 12) %}{% for j in range(10 ** 12) %}{% endfor %}{% endfor %}",
    "endless text": "{{ 'x' * 10 ** 10 }}",
    "much text": "{% for i in range(10 ** 7) %}{{ messages[0].content }}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "raises": "{{ raise_exception('never') }}",
    "no end": "{% for m in messages %}",
    "unknown name": "{{ nothing.at.all }}",
    "unknown function": "{{ nothing() }}",
    "unknown filter": "{{ messages | nothing }}",
    "unknown tag": "{% nothing %}",
    "no message": "hello",
    "nothing": "{# nothing #}",
    "system": "{% if messages[0].role != 'system' %}{{ raise_exception('system') }}{% endif %}",
    "division": "{{ 1 // 0 }}",
    "a key": "{{ messages[7].content }}",
    "sum": "{{ messages[0].content + 3 }}",
    "own class": "{{ ''.__class__.__mro__ }}",
    "an include": "{% include 'config.json' %}",
    "one message": "{{ messages[0].content }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "half a character": "{{ messages[0].content }}\\ud800{{ '\\ud800' }}",
}


def templates(random: Random, content: bytes) -> Mutation:
    """Use another chat template."""
    words = random.choice(list(TEMPLATES))
    return Mutation(words, TEMPLATES[words].encode())


TEMPLATE: list[Mutator] = [*TEXT, *[templates] * 8]


def gguf_header(random: Random, content: bytes) -> Mutation:
    """Change a number or a letter in the header of a GGUF file."""
    keys = list(re.finditer(rb"(?:general|llama|tokenizer)\.[a-z_.]+", content))
    where = random.choice(("begin", "key", "type", "value", "value"))
    key = random.choice(keys)
    place = {
        "begin": random.randrange(24),
        "key": key.start() + random.randrange(len(key[0])),
        "type": key.end(),
        "value": key.end() + 4 + random.randrange(8),
    }[where]
    value = random.choice((0, 1, 2, 8, 9, 0x7F, 0xFF, content[place] ^ 1))
    return Mutation(
        f"the byte {place} ({where} of {key[0].decode()}) is {value}",
        content[:place] + bytes([value]) + content[place + 1 :],
    )


GGUF: list[Mutator] = [*BYTES, flipped_at_the_begin, *[gguf_header] * 6]


def checkpoint_values(random: Random, content: bytes) -> Mutation:
    """Change a value of a checkpoint."""
    tree, words, _, _ = change_tree(random, torch.load(io.BytesIO(content), weights_only=True))
    stream = io.BytesIO()
    torch.save(tree, stream)
    return Mutation(words, stream.getvalue())


CHECKPOINT: list[Mutator] = [*BYTES, flipped_at_the_begin, *[checkpoint_values] * 8]


def journal_values(random: Random, content: bytes) -> Mutation:
    """Change a value of a line, and keep its checksum."""
    lines = content.splitlines()
    number = random.randrange(len(lines))
    place = lines[number].index(b"{")
    tree, words, names, _ = change_tree(random, json.loads(lines[number][place:]))
    lines[number] = lines[number][:place] + json.dumps(tree).encode()
    return Mutation(f"line {number}: {words}", b"\n".join(lines), names)


JOURNAL: list[Mutator] = [*TEXT, *[journal_values] * 4]
