"""``privgen generate``, and what it shares with ``privgen watermark generate``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import click

from privgen.cli import options, sealing
from privgen.cli.marks import hint_detect
from privgen.cli.marks import payload as payload_option
from privgen.cli.output import echo, write


if TYPE_CHECKING:
    from privgen.hallucination.amplification import Amplification, Gate
    from privgen.pipelines.generation import GeneratedImages, HallucinationControl
    from privgen.provenance.label import Preset
    from privgen.provenance.seal import Seal
    from privgen.watermark.write.mark_spec import KeyMark, MarkSpec


P = ParamSpec("P")


@dataclass(frozen=True)
class Request:
    """The arguments that both commands take; see the help of their options."""

    prompt: str
    output: Path
    n: int
    steps: int
    guidance_scale: float | None
    negative_prompt: str | None
    seed: int
    model: str
    device: str
    dtype: str
    as_json: bool
    overwrite: bool
    seal: Seal | None

    def run(self, *, mark: KeyMark | None = None, control: HallucinationControl | None = None) -> None:
        """Generate the images, and print the file, seed and status of each."""
        from privgen.diffusion.sampling import Sampling
        from privgen.hub import Placement
        from privgen.io.batches import BatchOptions
        from privgen.pipelines.generation import generate_files
        from privgen.watermark.networks import Networks

        result = generate_files(
            self.prompt,
            self.output,
            seeds=range(self.seed, self.seed + self.n),
            networks=Networks(self.model, Placement(self.device, self.dtype), safety_checker=True),
            sampling=Sampling(self.steps, self.guidance_scale, self.negative_prompt),
            mark=mark,
            control=control,
            batch=BatchOptions(overwrite=self.overwrite, progress=True, seal=self.seal),
        )
        self._show(result)

    def run_issued(self, registry: Path, key: str, issued_for: tuple[str | None, str | None], spec: MarkSpec) -> None:
        """Generate images that each carry an ID of their own, and print the file, seed and status of each.

        Args:
            registry: that issues the IDs.
            key: of the registry, a name or a key_id.
            issued_for: note and user.
            spec: how the mark is written.
        """
        from privgen.diffusion.sampling import Sampling
        from privgen.hub import Placement
        from privgen.io.batches import BatchOptions
        from privgen.pipelines.issuing import generate_issued
        from privgen.watermark.networks import Networks
        from privgen.watermark.registry.issuer import Issuer
        from privgen.watermark.registry.registry import Registry
        from privgen.watermark.registry.values import IssuedFor

        with Registry.open(registry) as opened:
            result = generate_issued(
                self.prompt,
                self.output,
                Issuer(opened, key, IssuedFor(issued_for[0], user=issued_for[1], model=self.model)),
                seeds=range(self.seed, self.seed + self.n),
                networks=Networks(self.model, Placement(self.device, self.dtype), safety_checker=True),
                sampling=Sampling(self.steps, self.guidance_scale, self.negative_prompt),
                spec=spec,
                batch=BatchOptions(overwrite=self.overwrite, seal=self.seal),
            )
        self._show(result)

    def _show(self, result: GeneratedImages) -> None:
        for note in result.notes:
            write(f"Note: {note}", err=True)
        if self.as_json:
            echo(result, as_json=True)
            return
        marked = {"key": result.key or result.key_id, "carrier": result.carrier} if result.carrier else {}
        echo([{"file": i.file, "seed": i.seed, "status": i.status, **marked} for i in result.images])
        for image in result.images:
            for item in image.objects:
                note = f"; {item.note}" if item.note else ""
                write(
                    f"{image.file}: {item.name} of {item.key}, {item.area:.1%} of the image, "
                    f"{item.object_psnr:.1f} dB, p = {item.p_value:.2g}{note}"
                )


_OPTIONS = (
    click.argument("prompt"),
    options.output(required=True, help="Image to write; with --n, a folder for the images."),
    click.option("--n", type=click.IntRange(1), default=1, show_default=True, help="Number of images."),
    click.option("--steps", type=click.IntRange(1, 1000), default=25, show_default=True, help="Denoising steps."),
    click.option(
        "--guidance-scale",
        type=click.FloatRange(0),
        show_default="3 for mini, else the model's own",
        help="How closely to follow the prompt: scale of classifier-free guidance.",
    ),
    click.option("--negative-prompt", metavar="TEXT", help="What the images must not show."),
    options.seed("Seed of the first image; the others count up from it."),
    options.model(),
    options.device(),
    options.dtype(),
    sealing.sign(),
    sealing.label(),
    sealing.say(),
    options.json(),
    options.overwrite(),
)


def takes_request(command: Callable[Concatenate[Request, P], None]) -> Callable[..., None]:
    """Decorator: give a command the options of a `Request`, and the request as its first argument."""

    @wraps(command)
    def call(
        prompt: str,
        output: Path,
        n: int,
        steps: int,
        guidance_scale: float | None,
        negative_prompt: str | None,
        seed: int,
        model: str,
        device: str,
        dtype: str,
        as_json: bool,
        overwrite: bool,
        sign: str | None,
        label: Preset | None,
        said: tuple[str, ...],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        numbers = (n, steps, guidance_scale, negative_prompt, seed)
        seal = sealing.seal_of(sign, label, said)
        command(Request(prompt, output, *numbers, model, device, dtype, as_json, overwrite, seal), *args, **kwargs)

    with_options: Callable[..., None] = call
    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options


@click.command(
    epilog=options.examples(
        'privgen generate "a cat on a blue background" -o cat.png',
        'privgen generate "a rocket on a red background" -o rockets --n 8 --seed 5',
        'privgen generate "a lighthouse" -o lighthouse.png --model stable-diffusion-v1-5/stable-diffusion-v1-5',
        'privgen generate "a cat" --key alice --sign alice --label eu-ai-act -o cat.png',
        'privgen generate "a clock" -o clocks --n 10 --amplify 1.3 --amplify-window 0 100 --reject-hallucinations 0.2',
    )
)
@takes_request
@options.key("Key file, or the name of a key: mark the images with it.", required=False)
@payload_option()
@options.registry(
    "Issue an ID from this registry for each image, and write it as the payload. --key is then a key of the registry."
)
@options.issued_for("--issued-for")
@click.option(
    "--amplify",
    "gamma",
    type=click.FloatRange(0, 10),
    metavar="GAMMA",
    help="Multiply the score by this while sampling, against hallucination; 1 changes nothing.",
)
@click.option(
    "--amplify-window",
    "window",
    type=click.FloatRange(0, 1000),
    nargs=2,
    metavar="LOW HIGH",
    show_default="0 1000",
    help="Amplify at these timesteps, of 1000.",
)
@click.option(
    "--amplify-gate",
    "gate",
    type=click.Choice(["constant", "running_variance", "learned"]),
    default="constant",
    show_default=True,
    help="Amplify everywhere, where predictions change from step to step, or where the model's variance is large.",
)
@click.option(
    "--amplify-tangent",
    "eta",
    type=click.FloatRange(0, 10),
    metavar="ETA",
    help="Multiply the part of each step that is across the sample by this.",
)
@click.option(
    "--reject-hallucinations",
    "reject",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    metavar="FRACTION",
    help="Leave out this fraction of the images: those in which the network itself sees most noise.",
)
def generate(
    request: Request,
    key: str | None,
    payload: int | None,
    registry: Path | None,
    note: str | None,
    user: str | None,
    gamma: float | None,
    window: tuple[float, float] | None,
    gate: Gate,
    eta: float | None,
    reject: float,
) -> None:
    """Generate images of what PROMPT says.

    With --key, they carry its mark; `privgen watermark generate` can also mark objects in them. --label and --sign say
    in their files that AI made them; `privgen verify` reads all three.

    PNG files say in their text chunks what made them. If a call for several images was interrupted, repeat it: it
    skips the images that are there. A call that rejects images starts again.
    """
    amplification = _amplification(gamma, window, gate, eta)
    from privgen.pipelines.generation import HallucinationControl

    if key is None and payload is not None:
        raise click.UsageError("--payload needs --key: say whose mark carries it.")
    excluded = payload is not None or amplification is not None or bool(reject)
    options.check_registry(registry, key, (note, user), excluded=excluded)
    if registry is not None and key is not None:
        from privgen.watermark.write.mark_spec import MarkSpec

        request.run_issued(registry, key, (note, user), MarkSpec())
        hint_detect(request.output, str(registry), request.model, option="--registry")
        return
    mark = None
    if key is not None:
        from privgen.watermark.key import load_key
        from privgen.watermark.write.mark_spec import KeyMark, MarkSpec

        mark = KeyMark(load_key(key), MarkSpec(payload=payload))
    request.run(mark=mark, control=HallucinationControl(amplification, reject))
    if key is not None:
        hint_detect(request.output, key, request.model)


def _amplification(
    gamma: float | None, window: tuple[float, float] | None, gate: Gate, eta: float | None
) -> Amplification | None:
    if gamma is None and eta is None:
        if window is None and gate == "constant":
            return None
        raise click.UsageError("Say how much to amplify: give --amplify or --amplify-tangent as well.")
    low, high = window or (0.0, 1000.0)
    if low > high:
        raise click.UsageError(f"--amplify-window is LOW HIGH, and {low:g} is above {high:g}; swap them.")
    from privgen.hallucination.amplification import Amplification

    return Amplification(1.0 if gamma is None else gamma, (low, high), gate, eta=1.0 if eta is None else eta)
