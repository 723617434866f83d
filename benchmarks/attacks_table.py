"""The table of docs/reference/attacks.md, from the attacks themselves.

python benchmarks/attacks_table.py
"""

from dataclasses import MISSING, fields

import click

from privgen.attacks import Attack, list_attacks


KINDS = {"D": "Distortions", "P": "Purification and regeneration", "A": "Adaptive attacks", "M": "Attacks on models"}
HEADS = ("name", "class", "what it does", "strength", "range", "off", "parameters")


def tables() -> str:
    """A table for each kind of attack."""
    known = [attack for attack in list_attacks() if attack.__module__.startswith("privgen.")]
    present = [kind for kind in KINDS if any(attack.kind == kind for attack in known)]
    return "\n\n".join(f"## {KINDS[kind]}\n\n{_table([a for a in known if a.kind == kind])}" for kind in present)


def _table(attacks: list[type[Attack]]) -> str:
    lines = ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(attack))} |" for attack in attacks)])


def _cells(attack: type[Attack]) -> list[str]:
    what = (attack.__doc__ or "").partition("\n")[0].rstrip(".")
    parameters = [f"`{f.name}={_shown(f.default)}`" for f in fields(attack) if f.name != "strength"]
    sweep = ", ".join(f"{strength:g}" for strength in attack.sweep)
    return [
        f"`{attack.name}`",
        f"`{attack.__name__}`",
        what,
        attack.unit,
        sweep,
        f"{attack.identity:g}",
        " ".join(parameters),
    ]


def _shown(value: object) -> str:
    return "" if value in (None, MISSING, "") else str(value)


@click.command(help=(__doc__ or "").split("\n")[0])
def main() -> None:
    click.echo(tables())


if __name__ == "__main__":
    main()
