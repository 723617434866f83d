"""Attacks by name."""

import math
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, TypeVar

from privgen.attacks.base import Attack, Kind, as_label


AttackType = TypeVar("AttackType", bound=type[Attack])

_REGISTRY: dict[str, type[Attack]] = {}


def register(attack: AttackType) -> AttackType:
    """Class decorator: make an attack known by its name.

    Raises:
        ValueError: the name is taken, or is not lower-case letters, digits and underscores, or an attribute of
            the class is missing or does not fit the others.
    """
    missing = [key for key in ("name", "kind", "unit", "sweep", "identity", "bounds") if not hasattr(attack, key)]
    if missing:
        raise ValueError(f"{attack.__name__} does not state {', '.join(missing)}")
    if attack.name != as_label(attack.name).lower():
        raise ValueError(f"expected a name of lower-case letters, digits and underscores, got {attack.name!r}")
    low, high = attack.bounds
    if not all(low <= strength <= high and math.isfinite(strength) for strength in (*attack.sweep, attack.identity)):
        raise ValueError(f"{attack.name}: sweep or identity lies outside the bounds")
    if _REGISTRY.setdefault(attack.name, attack) is not attack:
        raise ValueError(f"the name {attack.name!r} is taken by {_REGISTRY[attack.name].__name__}")
    return attack


def attack_class(name: str) -> type[Attack]:
    """The registered class of that name.

    Raises:
        ValueError: there is none.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    close = get_close_matches(name, _REGISTRY, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(_REGISTRY)}"
    raise ValueError(f"no attack is called {name!r}; {hint}")


def get_attack(name: str, **parameters: Any) -> Attack:
    """A registered attack by its name: `get_attack("jpeg", strength=50)`.

    Args:
        name: as `list_attacks` shows it.
        parameters: the attack's own; without `strength`, the middle of its range.

    Raises:
        ValueError: name or parameter unknown, or a value that the attack refuses.
    """
    attack = attack_class(name)
    known = [field.name for field in fields(attack)]
    if unknown := [key for key in parameters if key not in known]:
        raise ValueError(f"{name} takes {', '.join(known)}; got {', '.join(unknown)}")
    return attack(**parameters)


def parse_attack(text: str, **more: Any) -> Attack:
    """An attack written as NAME, NAME=STRENGTH or with parameters: "jpeg", "crop=0.5", "blur=1,reference=none".

    Args:
        text: the attack.
        more: parameters that are not in the text.

    Raises:
        ValueError: as `get_attack` does, or the text has another form.
    """
    head, *pairs = text.split(",")
    name, equals, strength = head.partition("=")
    if equals:
        pairs.insert(0, f"strength={strength}")
    parameters: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and value) or key in parameters:
            raise ValueError(f"expected NAME=STRENGTH or NAME=STRENGTH,KEY=VALUE, got {text!r}")
        parameters[key] = _parse_value(value)
    if twice := [key for key in more if key in parameters]:
        raise ValueError(f"{', '.join(twice)} is given twice: in {text!r} and beside it")
    parameters |= more
    try:
        return get_attack(name.strip(), **parameters)
    except TypeError as error:
        raise ValueError(f"{name.strip()}: a value in {text!r} is of the wrong kind") from error


def _parse_value(text: str) -> float | int | str | None:
    if text.lower() == "none":
        return None
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def list_attacks(kind: Kind | None = None) -> list[type[Attack]]:
    """Registered attacks of one kind or of all: distortions first, then by name."""
    chosen = [attack for attack in _REGISTRY.values() if kind in (None, attack.kind)]
    return sorted(chosen, key=lambda attack: ("DPAM".index(attack.kind), attack.name))
