"""The command `prunelit new`: read files, write a configuration of them, measure the dense model.

Internal: nothing here is public. Only `dense` needs torch.
"""
