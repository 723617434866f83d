"""The root command."""

import click

from privgen import __version__
from privgen.cli.groups import LazyGroup
from privgen.cli.memory import keep_freed_memory
from privgen.cli.options import examples


COMMANDS = {
    "env": ("privgen.cli.env:env", "Print versions and devices, for bug reports."),
    "key": ("privgen.cli.key:key", "Make and inspect watermark keys."),
    "generate": ("privgen.cli.generate:generate", "Generate images, marked or not."),
    "watermark": ("privgen.cli.watermark:watermark", "Train, embed and detect watermarks."),
    "data": ("privgen.cli.data:data", "Draw scenes and prepare folders of images."),
    "train": ("privgen.cli.train:train", "Train models from recipes."),
    "evaluate": ("privgen.cli.evaluate:evaluate", "Measure how well marks and protections hold."),
    "purify": ("privgen.cli.purify:purify", "Purify images with diffusion models."),
    "attack": ("privgen.cli.attack:attack", "Attack images as an adversary would."),
    "model": ("privgen.cli.model:model", "List, inspect and fetch models."),
}
"""Name: (where the command lives, what the listing says about it)."""


@click.group(
    cls=LazyGroup,
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "privgen env",
        "privgen COMMAND --help",
    ),
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def main() -> None:
    """Privacy and control for diffusion images.

    Data goes to standard output, progress and errors to standard error. Exit codes: 0 done, 1 failed,
    2 wrong usage, 3 not detected. PRIVGEN_DEBUG=1 shows the traceback of an error.
    """
    keep_freed_memory()
