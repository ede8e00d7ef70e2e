"""Build prompts of questions and tokenise them.

Internal: the public names are in `prunelit.tasks`.
"""
