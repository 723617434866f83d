"""The command line: parses, calls one function of the library, prints its result.

Modules here import only click and the standard library at the top; what is heavy (torch, diffusers, our own
code built on them) is imported inside the commands, so that help and completion answer at once.
"""
