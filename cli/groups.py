"""Groups of commands: they are imported when they are used, and their errors name the commands that exist."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from privgen.cli.errors import one_sentence_errors


class Group(click.Group):
    """A group that answers an unknown command with the known ones; groups made inside it do the same."""

    group_class: type[click.Group] | type[type] | None = type

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names."""
        if not ctx.resilient_parsing and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No such command {args[0]!r}; choose from {', '.join(self.list_commands(ctx))}.")
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """The root command: it imports a command when you invoke it, and turns errors into one sentence.

    Args:
        commands: by name, where the command lives ("module:attribute"), and its line in the listing.
        **attrs: what `click.Group` takes.
    """

    group_class = Group

    def __init__(self, *, commands: Mapping[str, tuple[str, str]], **attrs: Any) -> None:
        super().__init__(**attrs)
        self.table = commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of that name."""
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the listing without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.table.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        with one_sentence_errors():
            return super().invoke(ctx)
