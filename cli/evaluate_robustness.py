"""``privgen evaluate robustness``."""

from __future__ import annotations

from pathlib import Path

import click

from privgen.cli import options
from privgen.cli.output import echo


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
    help="How many images, strengths and methods are measured.",
)
@click.option("--n", type=click.IntRange(2), show_default="the preset's", help="Images to mark and attack.")
@click.option(
    "--negatives",
    type=click.IntRange(1),
    show_default="the preset's",
    help="Images without a mark to attack and read; without a search, each is compared with all keys.",
)
@click.option(
    "--search/--no-search",
    default=None,
    show_default="where the model can",
    help="Look for our marks also in images that were cut out or turned, as `watermark detect --search` does.",
)
@options.seed(help="Seed of prompts, noise, keys and attacks; the same seed gives the same images.")
@options.output(metavar="DIR", help="Folder for results.json, the page robustness.html, and a log for reruns.")
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="NAME",
    show_default="all of the preset",
    help="Attack to run, such as jpeg or jpeg_50; repeatable.",
)
@click.option(
    "--method",
    "methods",
    type=click.Choice(["token", "latent", "dwtDct", "dwtDctSvd", "rivaGan", "blind_watermark"]),
    multiple=True,
    show_default="those of the preset",
    help="Method to measure; repeatable.",
)
@click.option("--no-baselines", is_flag=True, help="Leave out the watermarks of other packages.")
@click.option(
    "--no-perceptual",
    is_flag=True,
    help="Leave ST-LPIPS and FD-MNv2 out; where they are installed, they take .1 s for each image and attack.",
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
    preset: str,
    n: int | None,
    negatives: int | None,
    search: bool | None,
    seed: int,
    output: Path | None,
    attacks: tuple[str, ...],
    methods: tuple[str, ...],
    no_baselines: bool,
    no_perceptual: bool,
    batch_size: int,
    steps: int,
    guidance_scale: float,
    robust_steps: int,
    device: str,
    dtype: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Measure how well marks survive attacks, beside the watermarks of other packages.

    The command generates images without a mark and with ours; other packages mark the ones without. All images, marked
    or not, go through the same attacks and are read again. Figures come with 95 % intervals, under "ci95". The first
    figures are those of the model's default carrier. What cannot be run is null, and "not_run" says why.

    With -o, a run goes on where it stopped: after an interruption, and when you add attacks.

    Baselines need `pip install 'privgen[baselines]'`, super-resolution needs `privgen[super-resolution]`, and ST-LPIPS
    needs `privgen[perceptual]`.
    """
    from privgen.diffusion.sampling import Sampling
    from privgen.evaluation.record import check_output
    from privgen.evaluation.robustness.evaluate import evaluate_robustness
    from privgen.evaluation.robustness.plan import RobustnessPlan
    from privgen.evaluation.robustness.report import PAGE
    from privgen.evaluation.watermark.model import load_watermark_model
    from privgen.evaluation.workers import processes
    from privgen.hub import Placement

    if output is not None:
        check_output(output, [PAGE], overwrite=overwrite)
    shared = processes()
    placement = Placement(shared.device if device == "auto" else device, dtype)
    loaded = load_watermark_model(model, placement, robust_steps=robust_steps)
    plan = RobustnessPlan(
        preset, n, negatives, seed, attacks, methods, not no_baselines, search, perceptual=not no_perceptual
    )
    sampling = Sampling(steps, guidance_scale, batch_size=batch_size)
    result = evaluate_robustness(loaded, plan, sampling, folder=output, processes=shared)
    if not shared.is_main:
        return
    if output is not None:
        result.save(output, overwrite=overwrite)
    echo(result.record() if as_json else result.summary(), as_json=as_json)
