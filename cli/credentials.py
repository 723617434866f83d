"""``privgen credentials``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from privgen.cli import options
from privgen.cli.errors import EXIT_FAILED, EXIT_NOT_DETECTED
from privgen.cli.groups import Group
from privgen.cli.output import echo, write


if TYPE_CHECKING:
    from privgen.provenance.credentials import Credentials

UNTRUSTED = (
    "These are test credentials: nobody vouches for them, and viewers of Content Credentials will call them "
    "untrusted. For signatures that others trust, get a certificate for C2PA from an authority, and keep it with "
    "`privgen credentials add`."
)


@click.group(
    cls=Group,
    epilog=options.examples(
        "privgen credentials new alice",
        "privgen credentials add studio --certificates chain.pem --private-key key.pem",
        "privgen credentials list",
        "privgen credentials recover found.webp --registry studio.db",
    ),
)
def credentials() -> None:
    """Make and keep what signs images: a certificate and its private key.

    The name of credentials finds their file in ~/.config/privgen/credentials, or in the folder that
    PRIVGEN_CREDENTIALS names. Whoever has the file can sign in your name: keep it private.
    """


def _save(made: Credentials, output: Path | None) -> Path:
    from privgen.provenance.credentials import SUFFIX, default_path

    if output is None:
        output = default_path(made.name)
    elif output.is_dir():
        output /= f"{made.name}{SUFFIX}"
    return made.save(output)


@credentials.command(
    epilog=options.examples("privgen credentials new alice", "privgen credentials new test --days 30")
)
@click.argument("name")
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="How long they are valid.")
@options.output(help="File to write, or a folder for it; by default the folder of credentials.")
@options.json()
def new(name: str, days: int, output: Path | None, as_json: bool) -> None:
    """Make test credentials called NAME, which nobody vouches for.

    They show that the same signer signed all your images, and that these have not changed since; not who you are.
    """
    from privgen.provenance.credentials import Credentials

    made = Credentials.new(name, days=days)
    echo({**made.public(), "file": _save(made, output)}, as_json=as_json)
    click.echo(f"Note: {UNTRUSTED}", err=True)


@credentials.command(
    epilog=options.examples(
        "privgen credentials add studio --certificates chain.pem --private-key key.pem",
        "privgen credentials add studio --certificates chain.pem --private-key key.pem --time-stamps "
        "http://timestamp.digicert.com",
    )
)
@click.argument("name")
@click.option(
    "--certificates",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="PEM file of the chain, first your certificate.",
)
@click.option(
    "--private-key",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="PEM file of your private key, unencrypted (PKCS 8).",
)
@click.option(
    "--time-stamps",
    metavar="URL",
    help="Time-stamping authority (RFC 3161) to ask for each signature; your images' hashes go there.",
)
@options.output(help="File to write, or a folder for it; by default the folder of credentials.")
@options.json()
def add(
    name: str, certificates: Path, private_key: Path, time_stamps: str | None, output: Path | None, as_json: bool
) -> None:
    """Keep a certificate that an authority has issued to you, under NAME."""
    from privgen.provenance.content_credentials import check_signs
    from privgen.provenance.credentials import Credentials

    made = Credentials.of_files(name, certificates, private_key, time_stamps=time_stamps)
    check_signs(made)
    echo({**made.public(), "file": _save(made, output)}, as_json=as_json)


@credentials.command(
    epilog=options.examples("privgen credentials show alice", "privgen credentials show alice --root > anchors.pem")
)
@click.argument("file_or_name")
@click.option("--root", is_flag=True, help="Print the last certificate of the chain, for `privgen verify --trust`.")
@options.json()
def show(file_or_name: str, root: bool, as_json: bool) -> None:
    """Print what everybody may know of credentials; never the private key."""
    from privgen.provenance.credentials import Credentials

    made = Credentials.load(file_or_name)
    if root:
        click.echo(made.root(), nl=False)
        return
    echo(made.public(), as_json=as_json)


@credentials.command("list", epilog=options.examples("privgen credentials list", "privgen credentials list --json"))
@options.json()
def list_(as_json: bool) -> None:
    """List the credentials in their folder."""
    from privgen.errors import PrivgenError
    from privgen.provenance.credentials import SUFFIX, Credentials, credentials_folder

    records, failed = [], False
    for path in sorted(credentials_folder().glob(f"*{SUFFIX}")):
        try:
            records.append({**Credentials.load(path).public(), "file": path})
        except PrivgenError as error:
            failed = True
            write(f"Error: {error}", err=True)
    echo(records, as_json=as_json)
    if not records and not failed and not as_json:
        click.echo(f"No credentials in {credentials_folder()}; `privgen credentials new NAME` makes some.", err=True)
    if failed:
        raise click.exceptions.Exit(EXIT_FAILED)


@credentials.command(
    epilog=options.examples(
        "privgen credentials recover found.webp --registry studio.db",
        "privgen credentials recover found.webp --registry studio.db --search -o found.c2pa",
    )
)
@click.argument("image", type=click.Path(path_type=Path))
@click.option(
    "--registry",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DB",
    help="Registry that issued the ID in the image's mark, and kept its credentials.",
)
@click.option("--search", is_flag=True, help="Also look for marks in an image that was cropped, framed or turned.")
@options.output(help="File for the credentials, a C2PA manifest store.")
@options.max_pixels()
@options.model()
@options.device()
@options.json()
def recover(
    image: Path,
    registry: Path,
    search: bool,
    output: Path | None,
    max_pixels: int,
    model: str,
    device: str,
    as_json: bool,
) -> None:
    """Find the credentials of an IMAGE that has lost them, by the ID in its mark.

    Exit codes: 0 found, 3 there is no mark of the registry's keys, or no credentials were kept for it.
    """
    from privgen.hub import Placement
    from privgen.io.files import write_bytes
    from privgen.watermark.networks import Networks
    from privgen.watermark.read.detection import Detector, DetectSpec
    from privgen.watermark.read.verify import verify_file
    from privgen.watermark.registry.registry import Registry

    with Registry.open(registry, write=False) as opened:
        detector = Detector(Networks(model, Placement(device)), opened.keys(), DetectSpec(search=search), every=False)
        found = verify_file(image, detector, registry=opened, max_pixels=max_pixels)
        kept = [
            manifest
            for record in found.records
            if record.payload is not None
            and (manifest := opened.credentials_of(record.key.key_id, record.payload)) is not None
        ]
    if as_json:
        plain = found.record()
        echo({name: plain[name] for name in ("file", "mark", "records", "recovered")}, as_json=True)
    else:
        write(str(found))
    if not kept:
        raise click.exceptions.Exit(EXIT_NOT_DETECTED)
    if output is not None:
        write_bytes(output, kept[0])
        write(f"Note: the credentials are in {output}.", err=True)
