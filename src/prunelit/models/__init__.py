"""Load, inspect, edit, run and save causal language models.

Internal: the public names are in `prunelit`.
"""
