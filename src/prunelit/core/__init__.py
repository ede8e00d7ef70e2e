"""The Lightning module, its data, and the processes of a run.

Internal: the public names are in `prunelit`.
"""
