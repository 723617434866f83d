"""Attacks by their names."""

import math
from collections.abc import Callable
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import TypeAlias, TypeVar

from privgen.attacks.adaptive.examples import ExamplesLike
from privgen.attacks.base import Attack, Kind, Sequence, as_label


AttackType = TypeVar("AttackType", bound=type[Attack])

Default: TypeAlias = float | str | None
"""What parameters of attacks are by default."""

JOINT = " then "
"""What stands between attacks that are done one after the other, where they are written as text."""

_REGISTRY: dict[str, type[Attack]] = {}


def register(attack: AttackType) -> AttackType:
    """Make a class of attacks known by its name; use it as a decorator.

    Raises:
        ValueError: the name is taken, or is not made of lower-case letters, digits and underscores; or the class does
            not set all attributes of `Attack`, or sets some that do not fit together.
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


def list_attacks(kind: Kind | None = None) -> list[type[Attack]]:
    """Return all registered attacks, or those of one kind, such as "P" for purification.

    They are in the order D, P, A, M of their kinds, and then by name.
    """
    chosen = [attack for attack in _REGISTRY.values() if kind in (None, attack.kind)]
    return sorted(chosen, key=lambda attack: ("DPAM".index(attack.kind), attack.name))


def attack_class(name: str) -> type[Attack]:
    """Return the registered class of a name.

    Raises:
        ValueError: no attack has that name.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    close = get_close_matches(name, _REGISTRY, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(_REGISTRY)}"
    raise ValueError(f"no attack is called {name!r}; {hint}")


def parameters_of(attack: type[Attack]) -> dict[str, Default]:
    """Return the parameters of an attack with their defaults, the strength first.

    For example, `{a.name: parameters_of(a) for a in list_attacks("P")}` are the parameters of all purifications.
    """
    return {field.name: field.default for field in fields(attack) if field.default is not MISSING}


def get_attack(name: str, **parameters: object) -> Attack:
    """Return a registered attack by its name: `get_attack("jpeg", strength=50)`.

    Args:
        name: as `list_attacks` has it.
        parameters: of the attack, by name: see `parameters_of`.

    Raises:
        ValueError: an unknown name or parameter, or a value that the attack refuses.
    """
    attack = attack_class(name)
    known = parameters_of(attack)
    if unknown := [key for key in parameters if key not in known]:
        raise ValueError(f"{name} takes {', '.join(known)}; got {', '.join(unknown)}")
    make: Callable[..., Attack] = attack
    return make(**parameters)


def parse_attack(
    text: str, *, marked: ExamplesLike | None = None, unmarked: ExamplesLike | None = None
) -> Attack | Sequence:
    """Return an attack that is written as NAME, NAME=STRENGTH, or either with parameters behind commas.

    Examples are "jpeg", "crop=0.5" and "blur=1,reference=none". The word "then" joins several to a sequence:
    "crop=0.5 then jpeg=50".

    Args:
        text: the attack.
        marked: images with a mark, for attacks that take them.
        unmarked: images without a mark, for attacks that take them.

    Raises:
        ValueError: see `get_attack`; or the text has another form.
        PrivgenError: an image cannot be read.
    """
    beside = {key: value for key, value in (("marked", marked), ("unmarked", unmarked)) if value is not None}
    parts = text.split(JOINT)
    if len(parts) == 1:
        return _parse_one(text, beside)
    takers = [{key for key in beside if key in parameters_of(attack_class(name_in(part)))} for part in parts]
    if useless := [key for key in beside if not any(key in taken for taken in takers)]:
        raise ValueError(f"no attack in {text!r} takes {', '.join(useless)}")
    return Sequence(
        *(_parse_one(part, {key: beside[key] for key in taken}) for part, taken in zip(parts, takers, strict=True))
    )


def name_in(text: str) -> str:
    """Return the name in a text such as "crop=0.5,place=centre", whether or not an attack has it."""
    return text.partition(",")[0].partition("=")[0].strip()


def _parse_one(text: str, beside: dict[str, ExamplesLike]) -> Attack:
    """Return the attack that a text without "then" means, with the images that are given beside it."""
    head, *pairs = text.split(",")
    name, equals, strength = head.partition("=")
    if equals:
        pairs.insert(0, f"strength={strength}")
    parameters: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and value) or key in parameters:
            raise ValueError(f"expected NAME=STRENGTH or NAME=STRENGTH,KEY=VALUE, got {text!r}")
        parameters[key] = _parse_value(value)
    if twice := [key for key in beside if key in parameters]:
        raise ValueError(f"{', '.join(twice)} is given twice: in {text!r} and beside it")
    try:
        return get_attack(name.strip(), **parameters, **beside)
    except TypeError as error:
        raise ValueError(f"{name.strip()}: a value in {text!r} is of the wrong kind") from error


def _parse_value(text: str) -> float | str | None:
    if text.lower() == "none":
        return None
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
