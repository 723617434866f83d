"""``privgen evaluate robustness``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from privgen.cli import completion, options
from privgen.cli.output import echo


if TYPE_CHECKING:
    from privgen.evaluation.robustness.report import RobustnessEvaluation
    from privgen.watermark.write.mark_spec import Carrier


_PHOTOGRAPHS = "photographs"
_ONLY_GENERATED = {"batch_size": "--batch-size", "steps": "--steps", "guidance_scale": "--guidance-scale"}
_ONLY_PHOTOGRAPHS = {"images": "--images", "carrier": "--carrier", "no_seconds": "--no-seconds"}


@click.command(
    epilog=options.examples(
        "privgen evaluate robustness -o runs/robustness",
        "privgen evaluate robustness --preset standard --n 100 --seed 1 --json -o runs/robustness",
        "privgen evaluate robustness --method latent --attack jpeg --attack rotation --no-baselines",
        "privgen evaluate robustness --images holiday --n 64 -o runs/photographs",
        "torchrun --nproc-per-node 2 -m privgen evaluate robustness --preset standard -o runs/robustness",
    )
)
@options.model()
@click.option(
    "--preset",
    type=click.Choice(["quick", "standard", "full", _PHOTOGRAPHS]),
    show_default="quick; photographs with --images",
    help="What is measured, and on how many images; photographs marks existing images at their own sizes.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    show_default="packaged photographs that no shipped model has seen",
    help="Photographs to mark and attack; --n of them are chosen at random, always the same ones.",
)
@click.option("--n", type=click.IntRange(2), show_default="the preset's", help="Images to mark and attack.")
@click.option(
    "--negatives",
    type=click.IntRange(1),
    show_default="the preset's",
    help="Images without a mark to attack and read; generated ones that are not searched are compared with all keys.",
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
    shell_complete=completion.attacks,
    help="Attack to run, such as jpeg or jpeg_50; repeatable.",
)
@click.option(
    "--method",
    "methods",
    type=click.Choice(["token", "latent", "privgen", "dwtDct", "dwtDctSvd", "rivaGan", "blind_watermark"]),
    multiple=True,
    show_default="those of the preset",
    help="Method to measure; repeatable. On photographs, privgen is ours.",
)
@click.option(
    "--carrier",
    type=click.Choice(["tile", "token", "latent", "tile+latent"]),
    show_default="tile+latent, or tile where the model has no networks for it",
    help="What our marks on photographs are written with and read as.",
)
@click.option("--no-baselines", is_flag=True, help="Leave out the watermarks of other packages.")
@click.option(
    "--no-perceptual",
    is_flag=True,
    help="Leave ST-LPIPS and FD-MNv2 out; where they are installed, they take .1 s for each image and attack.",
)
@click.option("--no-seconds", is_flag=True, help="Do not measure how long a photograph of 12 megapixels takes.")
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
@click.pass_context
def robustness(
    context: click.Context,
    model: str,
    preset: str | None,
    images: Path | None,
    n: int | None,
    negatives: int | None,
    search: bool | None,
    seed: int,
    output: Path | None,
    attacks: tuple[str, ...],
    methods: tuple[str, ...],
    carrier: Carrier | None,
    no_baselines: bool,
    no_perceptual: bool,
    no_seconds: bool,
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

    With --images, or --preset photographs, all methods mark the same photographs at their own sizes. The attacks are
    those that photographs meet: crops, borders, screenshots, chat apps, and pairs of a geometric and a photometric
    attack.

    With -o, a run goes on where it stopped: after an interruption, and when you add attacks.

    Baselines need `pip install 'privgen[baselines]'`, super-resolution needs `privgen[super-resolution]`, and ST-LPIPS
    needs `privgen[perceptual]`.
    """
    from privgen.evaluation.record import check_output
    from privgen.evaluation.robustness.photographs.plan import NEGATIVES, N, PhotographsPlan
    from privgen.evaluation.robustness.photographs.report import PhotographsEvaluation
    from privgen.evaluation.robustness.plan import RobustnessPlan
    from privgen.evaluation.robustness.report import PAGE
    from privgen.evaluation.workers import processes
    from privgen.hub import Placement

    preset = preset or ("quick" if images is None else _PHOTOGRAPHS)
    _check_options(context, preset)
    if output is not None:
        check_output(output, [PAGE], overwrite=overwrite)
    shared = processes()
    placement = Placement(shared.device if device == "auto" else device, dtype)
    result: RobustnessEvaluation | PhotographsEvaluation
    if preset == _PHOTOGRAPHS:
        from privgen.evaluation.robustness.photographs.evaluate import evaluate_photographs
        from privgen.watermark.watermark import Watermark

        chosen = PhotographsPlan(
            images=images,
            n=N if n is None else n,
            negatives=NEGATIVES if negatives is None else negatives,
            seed=seed,
            attacks=attacks,
            methods=methods,
            baselines=not no_baselines,
            carrier=carrier,
            robust_steps=robust_steps,
            search=search is not False,
            perceptual=not no_perceptual,
            seconds=not no_seconds,
        )
        mark = Watermark.from_pretrained(model, device=placement.device, dtype=dtype)
        result = evaluate_photographs(mark, chosen, folder=output, processes=shared)
    else:
        from privgen.diffusion.sampling import Sampling
        from privgen.evaluation.robustness.evaluate import evaluate_robustness
        from privgen.evaluation.watermark.model import load_watermark_model

        plan = RobustnessPlan(
            preset, n, negatives, seed, attacks, methods, not no_baselines, search, perceptual=not no_perceptual
        )
        sampling = Sampling(steps, guidance_scale, batch_size=batch_size)
        loaded = load_watermark_model(model, placement, robust_steps=robust_steps)
        result = evaluate_robustness(loaded, plan, sampling, folder=output, processes=shared)
    if not shared.is_main:
        return
    if output is not None:
        result.save(output, overwrite=overwrite)
    echo(result.record() if as_json else result.summary(), as_json=as_json)
    if isinstance(result, PhotographsEvaluation) and not as_json:
        click.echo("\nFraction of marks found at 1e-3 / 1e-6")
        echo(result.table())


def _check_options(context: click.Context, preset: str) -> None:
    """Refuse options that say nothing in a preset.

    Raises:
        click.UsageError: one of them was given.
    """
    unused = _ONLY_GENERATED if preset == _PHOTOGRAPHS else _ONLY_PHOTOGRAPHS
    for name, option in unused.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option} does not go with --preset {preset}; leave one of them out.")
