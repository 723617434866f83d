"""The root command."""

import os

import click

from privgen import __version__
from privgen.cli.groups import LazyGroup
from privgen.cli.options import examples


COMMANDS = {
    "key": ("privgen.cli.key:key", "Make and show keys."),
    "registry": ("privgen.cli.registry:registry", "Keep keys, and the IDs that are issued with them."),
    "token": ("privgen.cli.token:token", "Issue or learn the token of a key."),
    "watermark": ("privgen.cli.watermark:watermark", "Mark images, and detect whose mark they carry."),
    "generate": ("privgen.cli.generate:generate", "Generate images, plain, marked, labelled and signed."),
    "verify": ("privgen.cli.verify:verify", "Say what images prove of their origin."),
    "credentials": ("privgen.cli.credentials:credentials", "Make and keep what signs images."),
    "app": ("privgen.cli.app:app", "Mark, verify, attack and protect pictures in your browser."),
    "protect": ("privgen.cli.protect:protect", "Slow down learning from photographs."),
    "attack": ("privgen.cli.attack:attack", "Attack images, to see what survives."),
    "purify": ("privgen.cli.purify:purify", "Remove marks and protection with diffusion models."),
    "personalize": ("privgen.cli.personalize:personalize", "Learn a subject from images, to test a protection."),
    "evaluate": ("privgen.cli.evaluate:evaluate", "Measure models, marks, trainings and hallucination."),
    "adapt": ("privgen.cli.adapt:adapt", "Make the networks of marks for a model of your own."),
    "train": ("privgen.cli.train:train", "Train models and the networks of marks from recipes."),
    "data": ("privgen.cli.data:data", "Draw scenes and prepare folders of images."),
    "env": ("privgen.cli.env:env", "Print versions and devices, for bug reports."),
}
"""Name: (where the command lives, what the listing says about it)."""


@click.group(
    cls=LazyGroup,
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "privgen key new alice",
        "privgen watermark embed photo.jpg --key alice -o marked",
        "privgen watermark detect marked --key alice",
        "privgen watermark embed --help",
    ),
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def main() -> None:
    """Mark images, protect photographs from being learnt, attack both, and measure what holds.

    privgen also generates images with less hallucination, and trains the models and networks behind its commands.

    Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage,
    3 not detected, 130 interrupted. PRIVGEN_DEBUG=1 shows the traceback of an error.
    """
    # Transformers reads this when it is imported, and would say more about its packages than about your images.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
