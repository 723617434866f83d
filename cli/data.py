"""``privgen data``."""

from pathlib import Path

import click

from privgen.cli import options
from privgen.cli.groups import Group
from privgen.cli.output import echo


@click.group(
    cls=Group,
    epilog=options.examples("privgen data scenes -o sheet.png", "privgen data scenes --folder scenes --n 1000"),
)
def data() -> None:
    """Draw scenes: the small captioned world that mini was trained on."""


@data.command(
    epilog=options.examples(
        "privgen data scenes -o sheet.png",
        "privgen data scenes --n 12 --seed 7 --masks -o sheet.png",
        "privgen data scenes --folder scenes --n 1000 --masks",
    )
)
@click.option("--n", type=click.IntRange(1), default=32, show_default=True, help="Number of scenes.")
@options.seed(help="Seed of the first scene; the seeds of the others count up from it.")
@options.output(help="Contact sheet to write: pictures with their captions.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder to write: PNG files and metadata.jsonl, an imagefolder of Hugging Face datasets.",
)
@click.option("--masks", is_flag=True, help="Outline the objects in the sheet, or write their masks into the folder.")
@click.option("--held-out", is_flag=True, help="Draw objects that no shipped model was trained on.")
@click.option("--size", type=click.IntRange(16, 1024), help="Side in pixels; by default that of mini's scenes.")
@click.option("--columns", type=click.IntRange(1), default=8, show_default=True, help="Pictures in a row.")
@options.json()
@options.overwrite()
def scenes(
    n: int,
    seed: int,
    output: Path | None,
    folder: Path | None,
    masks: bool,
    held_out: bool,
    size: int | None,
    columns: int,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Draw scenes onto a contact sheet (-o) or into a folder (--folder)."""
    from privgen.data.scene_files import SceneSet, write_scene_sheet, write_scenes
    from privgen.data.scenes import HELDOUT_NOUNS, NOUNS, SIZE

    if (output is None) == (folder is None):
        raise click.UsageError("Give either -o/--output for a contact sheet or --folder for a folder of pictures.")
    chosen = SceneSet(seed, n, HELDOUT_NOUNS if held_out else NOUNS, size or SIZE)
    if folder is not None:
        echo(write_scenes(folder, chosen, masks=masks, overwrite=overwrite), as_json=as_json)
    elif output is not None:
        write_scene_sheet(output, chosen, masks=masks, columns=columns, overwrite=overwrite)
        echo({"sheet": output, "scenes": n, "seed": seed}, as_json=as_json)
