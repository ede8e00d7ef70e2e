"""Read results and items; write tables and figures.

Internal: the public names are in `prunelit`.
"""
