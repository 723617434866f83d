"""The command line: a command parses its arguments into the library's values, calls one function, prints its result.

Modules here import only click and the standard library at the top. Commands import PyTorch, Diffusers and what is
built on them when they run, so that help and completion answer at once.
"""
