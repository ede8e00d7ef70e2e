"""Run a model: generate, score choices, embed text.

Internal: the public names are in `prunelit.tasks`.
"""
