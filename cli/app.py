"""``privgen app``."""

from __future__ import annotations

import signal
from contextlib import suppress

import click

from privgen.cli import options


@click.command(epilog=options.examples("privgen app", "privgen app --port 8000 --no-browser"))
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=7860,
    show_default=True,
    help="Port of the page's address; 0 takes any that is free.",
)
@click.option("--no-browser", is_flag=True, help="Only print the address of the page; open no browser.")
@options.model()
@options.device()
def app(port: int, no_browser: bool, model: str, device: str) -> None:
    """Mark, verify, attack and protect pictures on a page in your browser.

    The page runs on this computer and can be reached from this computer only, by the secret in its address. It sends
    nothing to anybody. Pictures that you drop lie in a folder that only you can read; they are deleted when you close
    the page or stop the command.

    Needs `pip install 'privgen[app]'`. Stop the command with Ctrl-C.
    """
    from privgen.hub import Placement
    from privgen.webpage.serve import serve

    def ready(address: str) -> None:
        click.echo(address)
        click.echo("The page is open until you press Ctrl-C here. The address is secret.", err=True)
        if not no_browser:
            import webbrowser

            webbrowser.open(address)

    # So that pictures are deleted then, too.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            serve(model, Placement(device), port=port, ready=ready)
    finally:
        signal.signal(signal.SIGTERM, before)
    click.echo("Stopped; the pictures of the page are deleted.", err=True)
