"""``privgen env``."""

import click

from privgen.cli import options
from privgen.cli.output import echo


@click.command(epilog=options.examples("privgen env", "privgen env --json"))
@options.json()
def env(as_json: bool) -> None:
    """Print versions and devices, for bug reports."""
    from privgen.environment import environment

    echo(environment(), as_json=as_json)
