"""The methods of protection by name."""

from importlib import import_module

from privgen.errors import UsageError
from privgen.protection.method import Method


_HOMES = {
    "shield": "privgen.protection.shield.ShieldMethod",
    "shift": "privgen.protection.trajectory_shift.TrajectoryShift",
    "encoder": "privgen.protection.encoder.EncoderAttack",
    "advdm": "privgen.protection.denoiser.AdvDM",
    "mist": "privgen.protection.denoiser.Mist",
    "sds": "privgen.protection.denoiser.ScoreDistillation",
    "aspl": "privgen.protection.aspl.ASPL",
    "universal": "privgen.protection.universal.Universal",
    "noise": "privgen.protection.noise.Noise",
}

METHODS = tuple(_HOMES)
"""Names of the methods. "noise" and "universal" are controls."""


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UsageError: there is no method of that name.
    """
    if name not in _HOMES:
        raise UsageError(f"{name!r} is not a method of protection; choose from {', '.join(METHODS)}.")
    module, _, kind = _HOMES[name].rpartition(".")
    method: type[Method] = getattr(import_module(module), kind)
    return method
