"""docs/help/ holds the help of every command; `make help-texts` writes it, these tests compare it."""

from pathlib import Path

import click
import pytest

from privgen.cli.main import main


FOLDER = Path(__file__).parents[2] / "docs" / "help"


def help_texts(command=main, names=("privgen",), parent=None):
    """The help of a command and of all below it, by file name."""
    ctx = click.Context(command, parent=parent, info_name=names[-1], terminal_width=100, **command.context_settings)
    texts = {"-".join(names) + ".txt": command.get_help(ctx) + "\n"}
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            texts |= help_texts(command.get_command(ctx, name), (*names, name), ctx)
    return texts


@pytest.mark.parametrize("name", help_texts())
def test_committed_help_is_current(name):
    path = FOLDER / name
    assert path.is_file(), "run `make help-texts`"
    assert path.read_text(encoding="utf-8") == help_texts()[name], "run `make help-texts`"


def test_no_help_of_removed_commands():
    assert {path.name for path in FOLDER.glob("*.txt")} == set(help_texts())


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.txt"):
        old.unlink()
    for file, text in help_texts().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
