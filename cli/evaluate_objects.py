"""``privgen evaluate objects``."""

from __future__ import annotations

from pathlib import Path

import click

from privgen.cli import options
from privgen.cli.output import echo


@click.command(
    epilog=options.examples(
        "privgen evaluate objects --n 100 --seed 1 --json -o runs/objects",
        "privgen evaluate objects --n 10 --photographs 30 --photo-folder photos",
        "torchrun --nproc-per-node 2 -m -- privgen evaluate objects --n 100 --json -o runs/objects",
    )
)
@options.model()
@click.option("--n", type=click.IntRange(2), default=20, show_default=True, help="Scenes of each setting.")
@options.seed(help="Seed of scenes, keys, noise and places.")
@options.output(metavar="DIR", help="Folder for results.json, and for what an interrupted run goes on from.")
@click.option(
    "--photographs", type=click.IntRange(0), default=20, show_default=True, help="Photographs to mark; 0 for none."
)
@click.option(
    "--photo-folder",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of photographs; by default the packaged ones that no network was trained on.",
)
@click.option(
    "--carriers",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Scenes of each setting that every carrier marks at 29 dB, to compare them and what regeneration leaves of "
    "them; half a minute a scene. 0 for none.",
)
@options.device()
@options.json()
@options.overwrite()
def objects(
    model: str,
    n: int,
    seed: int,
    output: Path | None,
    photographs: int,
    folder: Path | None,
    carriers: int,
    device: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Measure how well marks of objects are written and found.

    Scenes have one, two or three objects, each with a key of its own, which is written where the model attends to the
    object's word. All keys are looked for without a mask: as the image is, after JPEG, in half of the image, and where
    the object is pasted into another image. Photographs have elliptic masks. All figures have 95 % intervals.

    With -o, a run goes on where it stopped; with a larger --n and --overwrite, it measures only what is new.
    """
    from privgen.evaluation.objects.evaluate import ObjectsPlan, evaluate_objects
    from privgen.evaluation.record import check_output
    from privgen.evaluation.workers import processes
    from privgen.hub import load_pipeline

    if output is not None:
        check_output(output, overwrite=overwrite)
    shared = processes()
    pipeline = load_pipeline(model, device=shared.device if device == "auto" else device, dtype="float32")
    result = evaluate_objects(
        pipeline, ObjectsPlan(n, seed, photographs, folder, carriers), folder=output, processes=shared
    )
    if not shared.is_main:
        return
    if output is not None:
        result.save(output, overwrite=overwrite)
    record = result.record()
    if as_json:
        echo(record, as_json=True)
        return
    parts = {"scenes": record["scenes"], "photographs": record["photographs"], **record["carriers"]}
    for kind, settings in parts.items():
        rows = [
            {kind: setting, **{name: None if item is None else item["value"] for name, item in figures.items()}}
            for setting, figures in settings.items()
        ]
        if rows:
            echo(rows)
    echo({"time_ratio": record["time_ratio"]})
