"""``privgen env``."""

import click

from privgen.cli import options
from privgen.cli.output import echo, to_json


@click.command(epilog=options.examples("privgen env", "privgen env --json"))
@options.json()
def env(as_json: bool) -> None:
    """Print versions and devices, for bug reports, and the folder of the Python environment that is active."""
    import sys

    from privgen.environment import environment

    echo({"environment": sys.prefix, **to_json(environment())}, as_json=as_json)
