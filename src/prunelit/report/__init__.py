"""Read results and items; write tables and figures. TensorBoard: see `callbacks/tensorboard.py`.

Internal: the public names are in `prunelit`.
"""
