"""Load, inspect, edit, run, compare and save causal language models.

Blocks that are not worked on wait in stores (`stores.py`): in files (`streaming.py`), or shared by
ranks (`shards.py`).

Internal: the public names are in `prunelit`.
"""
