"""Compare two models in embedding, logit and probability space.

Internal: the public names are in `prunelit.metrics`.
"""
