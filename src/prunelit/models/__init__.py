"""Load, inspect, edit, run, compare and save causal language models.

Blocks that wait to be pruned are offloaded by `pruning/offload.py`.

Internal: the public names are in `prunelit`.
"""
