"""``privgen evaluate robustness``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from privgen.cli import options
from privgen.cli.output import echo


if TYPE_CHECKING:
    from privgen.evaluation.robustness.contestants import Reader


@click.command(
    epilog=options.examples(
        "privgen evaluate robustness -o runs/robustness",
        "privgen evaluate robustness --preset standard --n 100 --seed 1 --json -o runs/robustness",
        "privgen evaluate robustness --method latent --attack jpeg --attack rotation --no-baselines",
        "torchrun --nproc-per-node 2 -m privgen evaluate robustness --preset standard -o runs/robustness",
    )
)
@options.model()
@click.option(
    "--preset",
    type=click.Choice(["quick", "standard", "full"]),
    default="quick",
    show_default=True,
    help="How many images, strengths and methods.",
)
@click.option("--n", type=click.IntRange(2), show_default="the preset's", help="Images to mark and attack.")
@click.option(
    "--negatives",
    type=click.IntRange(1),
    show_default="the preset's",
    help="Images without a mark to attack; each is compared with the keys of all images.",
)
@click.option(
    "--search/--no-search",
    default=None,
    show_default="where the model can",
    help="Look for our marks in images that were cut out or turned, as `watermark detect --search` does.",
)
@options.seed(help="Seed of prompts, noise, keys and attacks; the same seed gives the same images.")
@options.output(metavar="DIR", help="Folder for results.json, the page robustness.html, and what a rerun takes up.")
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="NAME",
    show_default="all of the preset",
    help="Attack to run, as jpeg or jpeg_50; repeatable.",
)
@click.option(
    "--method",
    "methods",
    type=click.Choice(["token", "latent", "dwtDct", "dwtDctSvd", "rivaGan", "blind_watermark"]),
    multiple=True,
    show_default="those of the preset",
    help="Method to measure; repeatable.",
)
@click.option("--no-baselines", is_flag=True, help="Leave the watermarks of other packages out.")
@click.option(
    "--no-perceptual",
    "perceptual",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Leave ST-LPIPS and FD-MNv2 out where they are installed; they take a tenth of a second an image and attack.",
)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Images at a time.")
@click.option("--steps", type=click.IntRange(1, 1000), default=25, show_default=True, help="Denoising steps.")
@click.option(
    "--guidance-scale", type=float, default=3.0, show_default=True, help="Scale of classifier-free guidance."
)
@options.robust_steps()
@options.device()
@options.dtype()
@options.json()
@options.overwrite()
def robustness(
    model: str,
    output: Path | None,
    methods: tuple[str, ...],
    no_baselines: bool,
    search: bool | None,
    robust_steps: int,
    device: str,
    dtype: str,
    as_json: bool,
    overwrite: bool,
    **chosen: Any,
) -> None:
    """Measure how well marks survive attacks, beside other packages' watermarks.

    Images are generated without a mark and with ours; other watermarks mark the ones without. All of them, marked or
    not, go through the same attacks and are read again. Figures come with 95 % intervals, under "ci95"; the first
    ones are those of the model's default carrier. What cannot be run is null, and "not_run" says why. With -o, a run
    that was interrupted, or gets more attacks, goes on where it stopped. Baselines need `pip install 'privgen[baselines]'`,
    super-resolution `privgen[super-resolution]`, ST-LPIPS `privgen[perceptual]`.
    """
    from privgen.evaluation.robustness.evaluate import evaluate_robustness
    from privgen.evaluation.robustness.report import check_output
    from privgen.evaluation.watermark.marking import load_watermark_model
    from privgen.evaluation.workers import processes

    if output is not None:
        check_output(output, overwrite=overwrite)
    shared = processes()
    place = shared.device if device == "auto" else device
    loaded = load_watermark_model(model, robust_steps=robust_steps, device=place, dtype=dtype)
    result = evaluate_robustness(
        loaded,
        read=_reader(model, search, place),
        methods=methods,
        baselines=() if no_baselines else None,
        device=place,
        folder=output,
        processes=shared,
        **chosen,
    )
    if not shared.is_main:
        return
    if output is not None:
        result.save(output, overwrite=overwrite)
    echo(result.record() if as_json else result.summary(), as_json=as_json)


def _reader(model: str, search: bool | None, device: str) -> Reader | None:
    """What reads our marks: with a search where it was asked for, or where nothing was said and the model has one."""
    from privgen.errors import PrivgenError
    from privgen.evaluation.robustness.contestants import SearchingReader
    from privgen.hub import load_extra
    from privgen.watermark.read.search import AlignedReader

    if search is False:
        return None
    try:
        extractor, aligner = (load_extra(name, model, device=device) for name in ("extractor", "aligner"))
    except PrivgenError:
        if search:
            raise
        return None
    return SearchingReader(AlignedReader(extractor, aligner))
