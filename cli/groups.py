"""Groups of commands: imported when used, with errors that name what exists."""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click

from privgen.cli.errors import one_sentence_errors


class Group(click.Group):
    """A group that answers an unknown command with the known ones; groups made inside it are of its class."""

    group_class: type[click.Group] | type[type] | None = type

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names."""
        if not ctx.resilient_parsing and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No such command {args[0]!r}; choose from {', '.join(self.list_commands(ctx))}.")
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """The root: its commands are imported when invoked, their errors become one sentence.

    Args:
        commands: by name, ("module:attribute", line in the listing).
        **attrs: what `click.Group` takes.
    """

    group_class = Group

    def __init__(self, *, commands: Mapping[str, tuple[str, str]], **attrs: Any) -> None:
        super().__init__(**attrs)
        self._lazy = {name: row for name, row in commands.items() if find_spec(row[0].partition(":")[0])}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order of the table."""
        return [*self._lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._lazy[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the listing without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._lazy[name][1]) for name in self._lazy])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        with one_sentence_errors():
            return super().invoke(ctx)
