"""What the shell offers when you press Tab."""

import json
import os

import pytest

from privgen.attacks import list_attacks
from privgen.attacks.registry import JOINT
from privgen.cli import completion
from privgen.cli.main import COMMANDS
from privgen.hub import EMBEDDED


RECIPES = "privgen:recipes/"
TYPED = {
    "privgen ": list(COMMANDS),
    "privgen watermark ": ["detect", "embed", "generate"],
    "privgen attack run jp": ["jpeg"],
    "privgen attack run 'crop=0.5 then jp": ["crop=0.5 then jpeg"],
    "privgen attack run 'crop=0.5,place=centre then blur=1 then w": [
        f"crop=0.5,place=centre then blur=1 then {name}" for name in ("webp", "wechat", "whatsapp")
    ],
    "privgen evaluate robustness --attack rot": ["rotation"],
    "privgen watermark embed --key al": ["alice"],
    "privgen generate --sign st": ["studio"],
    "privgen watermark detect photos --key ": ["alice", "bob"],
    "privgen watermark embed --object cat=b": ["cat=bob"],
    "privgen watermark embed --carrier t": ["tile", "token", "tile+latent"],
    "privgen generate --model mini": ["mini", "mini-sd"],
    "privgen train shield --recipe privgen:recipes/sh": [f"{RECIPES}shield.toml", f"{RECIPES}shift.toml"],
    "privgen protect --method a": ["advdm", "aspl"],
}
HEAVY = ("torch", "diffusers", "transformers", "numpy", "scipy", "PIL")


def test_names_are_completed_and_nothing_heavy_is_imported(python, tmp_path):
    """All in one process, because a process costs more than what is completed."""
    for name in ("alice", "bob"):
        (tmp_path / f"{name}.key").touch()
    (tmp_path / "studio.credentials").touch()
    code = f"""
import contextlib, io, json, os, sys
from click.shell_completion import split_arg_string
from privgen.cli.main import main
for typed in {list(TYPED)!r}:
    words = len(split_arg_string(typed)) - (not typed.endswith(" "))
    os.environ |= {{"COMP_WORDS": typed, "COMP_CWORD": str(words)}}
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())) as said, contextlib.suppress(SystemExit):
        main(prog_name="privgen")
    said.flush()
    print(json.dumps(said.buffer.getvalue().decode().splitlines()))
print(json.dumps([name for name in {HEAVY} if name in sys.modules]))
"""
    own = {"PRIVGEN_KEYS": str(tmp_path), "PRIVGEN_CREDENTIALS": str(tmp_path)}
    result = python("-c", code, env=os.environ | own | {"_PRIVGEN_COMPLETE": "bash_complete"})
    assert result.returncode == 0, result.stderr
    *completed, heavy = map(json.loads, result.stdout.splitlines())
    assert heavy == [], result.stderr
    assert completed == [[f"plain,{name}" for name in names] for names in TYPED.values()], result.stderr


@pytest.mark.parametrize(
    ("shell", "word"), [("bash", "complete -o"), ("zsh", "#compdef privgen"), ("fish", "complete ")]
)
def test_the_script_of_each_shell(cli, monkeypatch, shell, word):
    monkeypatch.setenv("_PRIVGEN_COMPLETE", f"{shell}_source")
    assert word in cli().stdout


def test_the_names_are_those_of_the_code():
    assert tuple(attack.name for attack in list_attacks()) == completion.ATTACKS
    assert (completion.MODELS, completion.JOINT) == (EMBEDDED, JOINT)
