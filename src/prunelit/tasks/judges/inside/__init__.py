"""Code that runs inside the sandbox: one interpreter has the program, another one its tests.

Internal: nothing here is public. `sandbox.py` copies these files into the sandbox, where they have
the standard library only.
"""
