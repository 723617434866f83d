"""Errors that say what to do; the command line prints them as one sentence."""


class PrivgenError(Exception):
    """Something failed that the caller can do something about (exit code 1)."""


class UsageError(PrivgenError):
    """The call itself cannot mean anything sensible (exit code 2)."""
