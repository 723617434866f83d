"""``privgen registry``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from privgen.cli import options
from privgen.cli.groups import Group
from privgen.cli.output import echo


if TYPE_CHECKING:
    from privgen.watermark.registry.export import Format, Table
    from privgen.watermark.registry.values import Status


_database = click.argument("database", type=click.Path(path_type=Path))


@click.group(
    cls=Group,
    epilog=options.examples(
        "privgen registry create studio.db",
        "privgen registry add studio.db alice",
        'privgen watermark embed photos --registry studio.db --key alice --issued-for "client 17" -o marked',
        "privgen watermark detect found.png --registry studio.db",
    ),
)
def registry() -> None:
    """Keep keys, and the IDs that you issue with them, in one file.

    The file is a SQLite database with the secrets of its keys: keep it private, and keep a copy. Several processes may
    use it at once.
    """


@registry.command(epilog=options.examples("privgen registry create studio.db"))
@_database
def create(database: Path) -> None:
    """Make an empty registry that only you may read."""
    from privgen.watermark.registry.registry import Registry

    Registry.create(database).close()
    click.echo(f"Hint: privgen registry add {database} NAME", err=True)


@registry.command(
    epilog=options.examples(
        "privgen registry add studio.db alice",
        "privgen registry add studio.db alice.key",
        "privgen registry add studio.db carol --new",
        "privgen registry add studio.db alice --derive user/dave --derive user/erin",
    )
)
@_database
@click.argument("key")
@click.option("--new", is_flag=True, help="Make a new key of that name; its secret is in the registry alone.")
@click.option(
    "--derive",
    "labels",
    multiple=True,
    metavar="LABEL",
    help="Add a key that is derived from the registry's KEY with this label, such as user/dave; repeatable.",
)
@options.json()
def add(database: Path, key: str, new: bool, labels: tuple[str, ...], as_json: bool) -> None:
    """Add KEY, a key file or the name of a key, to a registry.

    Or make a new key, or keys that are derived from one of the registry.
    """
    if new and labels:
        raise click.UsageError("Give --new or --derive, not both.")
    from privgen.watermark.key import Key, load_key
    from privgen.watermark.registry.registry import Registry

    with Registry.open(database) as opened:
        if labels:
            added = [opened.derive(key, label) for label in labels]
        else:
            added = [opened.add(Key.new(key) if new else load_key(key))]
    echo([_public(entry.record()) for entry in added], as_json=as_json)


@registry.command(
    "list", epilog=options.examples("privgen registry list studio.db", "privgen registry list studio.db --json")
)
@_database
@click.option("--status", type=click.Choice(["active", "superseded", "revoked"]), help="Only keys of this status.")
@options.json()
def list_(database: Path, status: Status | None, as_json: bool) -> None:
    """List the keys of a registry; never their secrets."""
    from privgen.watermark.registry.registry import Registry

    with Registry.open(database, write=False) as opened:
        echo([_public(entry.record()) for entry in opened.list(status)], as_json=as_json)


@registry.command(epilog=options.examples('privgen registry revoke studio.db alice --why "the laptop was stolen"'))
@_database
@click.argument("key")
@click.option("--why", metavar="TEXT", help="The reason.")
@options.json()
def revoke(database: Path, key: str, why: str | None, as_json: bool) -> None:
    """Say that KEY, a name or a key_id, is not to be used any more.

    Its marks are still found, and said to be of a revoked key. No IDs are issued with it.
    """
    from privgen.watermark.registry.registry import Registry

    with Registry.open(database) as opened:
        echo(_public(opened.revoke(key, why).record()), as_json=as_json)


@registry.command(epilog=options.examples("privgen registry rotate studio.db alice"))
@_database
@click.argument("name")
@options.json()
def rotate(database: Path, name: str, as_json: bool) -> None:
    """Replace the key NAME by a new one of the same name.

    Marks of the old key are still found, and said to be of a key that was replaced.
    """
    from privgen.watermark.registry.registry import Registry

    with Registry.open(database) as opened:
        echo(_public(opened.rotate(name).record()), as_json=as_json)


@registry.command(
    epilog=options.examples(
        'privgen registry issue studio.db alice --for "client 17"',
        "privgen registry issue studio.db alice --user u-123 --json",
    )
)
@_database
@click.argument("key")
@options.issued_for("--for")
@click.option("--id", "payload", type=click.IntRange(0, 2**32 - 1), help="An ID of yours; by default a random one.")
@options.json()
def issue(database: Path, key: str, note: str | None, user: str | None, payload: int | None, as_json: bool) -> None:
    """Issue an ID with KEY, which you can then write with --payload.

    `privgen watermark embed --registry` issues and writes IDs itself.
    """
    from privgen.watermark.registry.registry import Registry
    from privgen.watermark.registry.values import IssuedFor

    with Registry.open(database) as opened:
        issued = opened.issue(key, IssuedFor(note, user=user), payload=payload)
    echo(issued.record(), as_json=as_json)


@registry.command(epilog=options.examples("privgen registry lookup studio.db alice 3141592653"))
@_database
@click.argument("key")
@click.argument("payload", type=click.IntRange(0, 2**32 - 1))
@options.json()
def lookup(database: Path, key: str, payload: int, as_json: bool) -> None:
    """Say what an ID that was found in an image was issued for; KEY is a name or a key_id."""
    from privgen.errors import PrivgenError
    from privgen.watermark.registry.registry import Registry

    with Registry.open(database, write=False) as opened:
        entry = opened.find(key)
        issued = None if entry is None else opened.lookup(entry.key_id, payload)
    if entry is None:
        raise click.UsageError(f"The registry {database} has no key {key}; `privgen registry list` shows all.")
    if issued is None:
        raise PrivgenError(f"The registry {database} has not issued the ID {payload} with the key {entry}.")
    echo(issued.record(), as_json=as_json)


@registry.command(
    epilog=options.examples(
        "privgen registry export studio.db > keys.jsonl",
        "privgen registry export studio.db --table ids --format csv > ids.csv",
        "privgen registry export studio.db --secrets -o secrets.jsonl",
    )
)
@_database
@click.option("--table", type=click.Choice(["keys", "ids"]), default="keys", show_default=True, help="What to write.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="JSON lines, or CSV.",
)
@click.option("--secrets", is_flag=True, help="With -o: write secrets, too, to a file that only you may read.")
@options.output(help="File to write; by default standard output.")
@options.overwrite()
def export(database: Path, table: Table, kind: Format, secrets: bool, output: Path | None, overwrite: bool) -> None:
    """Write the keys or the issued IDs of a registry as text, without secrets."""
    if secrets and (output is None or table != "keys"):
        raise click.UsageError("--secrets needs -o and --table keys: secrets go to a file that only you may read.")
    from privgen.io.files import atomic_write
    from privgen.watermark.registry.export import export as lines_of
    from privgen.watermark.registry.registry import Registry

    with Registry.open(database, write=False) as opened:
        lines = lines_of(opened, table, kind, secrets=secrets)
        if output is None:
            for line in lines:
                click.echo(line, nl=False)
            return
        with atomic_write(output, overwrite=overwrite, mode=0o600 if secrets else 0o666) as file:
            file.writelines(line.encode() for line in lines)


@registry.command(epilog=options.examples("privgen registry check studio.db"))
@_database
@options.json()
def check(database: Path, as_json: bool) -> None:
    """Examine a whole registry, and say how many keys and IDs it holds."""
    from privgen.watermark.registry.registry import Registry

    with Registry.open(database, write=False) as opened:
        keys, ids = opened.check()
    echo({"keys": keys, "ids": ids}, as_json=as_json)


def _public(record: dict[str, object]) -> dict[str, object]:
    """An entry without what is always there and says nothing to people."""
    return {name: value for name, value in record.items() if name != "fingerprint"}
