"""Read data: from a file, a package or the hub to rows, texts and batches of tokens."""

from prunelit.data.rows import load_rows, load_texts

__all__ = ["load_rows", "load_texts"]
