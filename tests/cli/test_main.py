import json
import re
import shlex
from importlib import import_module

import click
import pytest
from click.testing import CliRunner

import privgen
from privgen.cli import options
from privgen.cli.errors import one_sentence_errors
from privgen.cli.groups import Group
from privgen.cli.main import COMMANDS, main
from privgen.errors import PrivgenError, UsageError


HEAVY = ("torch", "diffusers", "transformers", "numpy", "scipy", "PIL")


def commands(command=main, names=("privgen",)):
    """Every command below one, as (names, command)."""
    yield names, command
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            yield from commands(command.get_command(ctx, name), (*names, name))


def examples_of(command):
    """Calls of privgen in a command's examples, without what follows in a pipe."""
    for line in (command.epilog or "").splitlines():
        if line.strip().startswith("privgen"):
            yield re.split(r"[|>&]", line)[0].strip()


EVERY = [pytest.param(names, command, id=" ".join(names)) for names, command in commands()]


@pytest.mark.parametrize(("names", "command"), EVERY)
def test_help_imports_nothing_heavy(python, names, command):
    code = f"""
import sys
from privgen.cli.main import main
main({[*names[1:], "--help"]!r}, prog_name="privgen", standalone_mode=False)
print("heavy:", [name for name in {HEAVY} if name in sys.modules])
"""
    result = python("-c", code)
    assert result.stdout.endswith("heavy: []\n"), result.stdout + result.stderr


@pytest.mark.parametrize(("names", "command"), EVERY)
def test_help_has_examples(names, command):
    assert command.epilog, "expected epilog=options.examples(...)"
    assert " ".join(names) in command.epilog.partition("Examples:")[2]


@pytest.mark.parametrize("line", sorted({line for _, command in commands() for line in examples_of(command)}))
def test_examples_name_what_exists(line):
    command, words = main, shlex.split(line)[1:]
    while isinstance(command, click.Group) and words and words[0] in command.list_commands(click.Context(command)):
        command = command.get_command(click.Context(command), words.pop(0))
    params = command.get_params(click.Context(main, **main.context_settings))
    known = {name for param in params for name in (*param.opts, *param.secondary_opts)}
    assert {word.partition("=")[0] for word in words if re.match(r"-+[a-z]", word)} <= known
    if isinstance(command, click.Group):
        assert [word for word in words if not word.startswith("-")] in ([], ["COMMAND"])


@pytest.mark.parametrize(("names", "command"), EVERY)
def test_every_option_has_help(names, command):
    silent = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert not silent


def test_short_and_long_help_agree(cli):
    assert cli("-h").output == cli("--help").output
    assert cli("env", "-h").output == cli("env", "--help").output


def test_listing_is_the_table(cli):
    output = cli("--help").output
    assert [name for name, (_, text) in COMMANDS.items() if text in output] == main.list_commands(click.Context(main))


def test_help_of_the_root_is_true(cli):
    """It lists every command, and none that does not exist."""
    output = cli("--help").output
    assert all(f"  {name} " in output for name in COMMANDS)
    for name, (where, _) in COMMANDS.items():
        module, _, attribute = where.partition(":")
        assert getattr(import_module(module), attribute).name == name


def test_version(cli):
    assert cli("--version").output == f"privgen {privgen.__version__}\n"


def test_runs_as_module(python, tmp_path):
    result = python("-m", "privgen", "--version", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, f"privgen {privgen.__version__}\n")


def test_env_json(cli):
    import torch

    record = json.loads(cli("env", "--json").stdout)
    assert record["privgen"] == privgen.__version__
    assert record["packages"]["torch"] == torch.__version__
    assert record["cuda"] is torch.cuda.is_available()


def test_env_for_people(cli):
    lines = cli("env").stdout.splitlines()
    assert f"privgen                {privgen.__version__}" in lines


def test_unknown_command_lists_the_known_ones(cli):
    result = cli("enw")
    assert result.exit_code == 2
    assert f"No such command 'enw'; choose from {', '.join(main.list_commands(click.Context(main)))}." in result.stderr


def test_unknown_command_of_a_group_inside_a_group():
    @click.group(cls=Group)
    def outer(): ...

    @outer.group()
    def inner(): ...

    @inner.command()
    def leaf(): ...

    result = CliRunner().invoke(outer, ["inner", "loaf"])
    assert result.exit_code == 2
    assert "No such command 'loaf'; choose from leaf." in result.stderr


ERRORS = [
    (PrivgenError("the key has\nno secret"), 1, "the key has no secret"),
    (UsageError("give a key or a token, not both"), 2, "give a key or a token, not both"),
    (ValueError("expected 1 key, got 2"), 1, "expected 1 key, got 2"),
    (FileNotFoundError(2, "No such file or directory", "a.png"), 1, "a.png: No such file or directory."),
    (KeyError("unet"), 1, "Unexpected KeyError: 'unet' (PRIVGEN_DEBUG=1 shows where)."),
    (AssertionError(), 1, "Unexpected AssertionError: no message (PRIVGEN_DEBUG=1 shows where)."),
    (click.UsageError("bad option"), 2, "bad option"),
    (click.exceptions.Exit(3), 3, None),
]


@pytest.mark.parametrize(("error", "code", "said"), ERRORS, ids=[type(error).__name__ for error, *_ in ERRORS])
def test_errors_are_one_sentence(error, code, said):
    result = CliRunner().invoke(failing(error))
    assert result.exit_code == code
    assert result.stderr.splitlines()[-1:] == ([f"Error: {said}"] if said else [])
    assert "Traceback" not in result.stderr


def test_an_interrupt_has_an_exit_code_of_its_own():
    result = CliRunner().invoke(failing(KeyboardInterrupt()))
    assert (result.exit_code, result.stderr.strip()) == (130, "Interrupted; what was finished is kept.")


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("PRIVGEN_DEBUG", "1")
    result = CliRunner().invoke(failing(UsageError("not both")))
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("Error: not both\n")


def test_root_wraps_its_commands(cli, monkeypatch):
    def fail():
        raise PrivgenError("no such thing")

    monkeypatch.setattr("privgen.environment.environment", fail)
    result = cli("env")
    assert (result.exit_code, result.stderr) == (1, "Error: no such thing\n")


def failing(error):
    @click.command()
    @one_sentence_errors()
    def command():
        raise error

    return command


def test_shared_options(tmp_path):
    got = {}

    @click.command()
    @options.model()
    @options.seed()
    @options.device()
    @options.dtype()
    @options.json()
    @options.output(required=True, help="Folder.")
    @options.overwrite()
    def command(**given):
        got.update(given)

    assert CliRunner().invoke(command, ["-o", str(tmp_path)]).exit_code == 0
    assert got == {
        "model": "mini", "seed": 0, "device": "auto", "dtype": "auto", "as_json": False,
        "output": tmp_path, "overwrite": False,
    }  # fmt: skip
    text = CliRunner().invoke(command, ["--help"]).output
    assert "[default: mini]" in text
    assert "Folder.  [required]" in text
    assert CliRunner().invoke(command, []).exit_code == 2
