"""Read data: from a file, a package or the hub to rows, texts and batches of tokens.

Internal: the public names are in `prunelit`.
"""
