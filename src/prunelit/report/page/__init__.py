"""One page for the decision: what a run keeps, what it gains, why, and what got worse.

Nothing here imports torch or matplotlib, so that `prunelit report` and `prunelit worse` answer at
once.

Internal: nothing here is public.
"""
