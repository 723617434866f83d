"""``privgen token``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from privgen.cli import completion, options
from privgen.cli.attack import parse
from privgen.cli.groups import Group
from privgen.cli.output import echo


if TYPE_CHECKING:
    from privgen.attacks import RandomDistortion
    from privgen.watermark.token import Token
    from privgen.watermark.write.token_by_gradient import OptimiseStep


@click.group(
    cls=Group,
    epilog=options.examples(
        "privgen token issue --key alice -o alice.safetensors",
        'privgen token optimise "a cat" "a clock" --key alice -o learned.safetensors',
        "privgen token show alice.safetensors",
        'privgen watermark generate "a cat on a blue background" --token alice.safetensors -o cat.png',
    ),
)
def token() -> None:
    """Issue or learn the token of a key, the word that writes its mark.

    A token's file is a textual inversion, which Diffusers loads. It holds neither the key's secret nor its message,
    but whoever has it can mark images in the key's name: keep it private.
    """


def _output() -> options.Decorator[Any]:
    return options.output(required=True, metavar="FILE", help="File to write; it ends in .safetensors.")


@token.command(
    epilog=options.examples(
        "privgen token issue --key alice -o alice.safetensors",
        "privgen token issue --key alice.key -o alice.safetensors --overwrite --json",
    )
)
@options.key()
@_output()
@options.model()
@options.json()
@options.overwrite()
def issue(key: str, output: Path, model: str, as_json: bool, overwrite: bool) -> None:
    """Make a key's token with the model's mapper.

    This takes milliseconds. The model must carry a token mapper, as mini does. For other models, `privgen token
    optimise` learns a token.
    """
    from privgen.watermark.key import load_key

    owner = load_key(key)
    from privgen.hub import Placement, model_label
    from privgen.watermark.networks import Networks
    from privgen.watermark.token import issue_token

    mapper = Networks(model, Placement("cpu")).mapper("token")
    made = issue_token(mapper, owner, metadata={"base_model": model_label(model)})
    file = made.save(output, overwrite=overwrite)
    echo({**_record(made), "file": file}, as_json=as_json)


@token.command(
    epilog=options.examples(
        'privgen token optimise "a cat" "a clock" --key alice -o alice.safetensors',
        'privgen token optimise "a cat" --key alice -o alice.safetensors --against jpeg=50 --against blur=4',
        'privgen token optimise "a cat" --key alice -o better.safetensors --init alice.safetensors',
    )
)
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@options.key()
@_output()
@click.option("--steps", type=click.IntRange(1), default=500, show_default=True, help="Steps of the optimiser.")
@click.option(
    "--tau",
    type=click.IntRange(0, 1000),
    default=250,
    show_default=True,
    help="The token acts on timesteps up to this one, of 1000.",
)
@click.option(
    "--vectors",
    type=click.IntRange(1),
    show_default="1, or those of --init",
    help="Embeddings of the token: places that it takes in a prompt.",
)
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    default=0.01,
    show_default=True,
    help="Learning rate, in units of the embedding.",
)
@click.option(
    "--unrolled-steps",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Denoising steps from tau to the image, through which gradients flow.",
)
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Images a step.")
@click.option(
    "--lambda-w",
    type=click.FloatRange(0),
    default=100.0,
    show_default=True,
    help="Weight of the message: that the extractor reads it.",
)
@click.option(
    "--lambda-z",
    type=click.FloatRange(0),
    default=100.0,
    show_default=True,
    help="Weight of the latents: that they stay those of the plain prompt.",
)
@click.option(
    "--guidance-scale",
    type=click.FloatRange(0),
    show_default="3 for mini, else 7.5",
    help="Scale of classifier-free guidance; use the one that you generate with.",
)
@click.option(
    "--start",
    type=click.Choice(["chain", "renoise"]),
    default="chain",
    show_default=True,
    help="Where denoising starts: at tau of each prompt's own chain, or at its image with new noise for each step.",
)
@click.option(
    "--init",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Token to begin with, such as an earlier one of the same model; by default random numbers.",
)
@click.option(
    "--against",
    multiple=True,
    metavar="ATTACK",
    shell_complete=completion.attacks,
    help="Attack that the mark must survive, such as jpeg=50, see `privgen attack list`; repeatable. Each step draws "
    "one of them, or none.",
)
@options.seed()
@options.model()
@options.device()
@options.json()
@options.overwrite()
def optimise(
    prompts: tuple[str, ...],
    key: str,
    output: Path,
    steps: int,
    tau: int,
    vectors: int | None,
    lr: float,
    unrolled_steps: int,
    batch_size: int,
    lambda_w: float,
    lambda_z: float,
    guidance_scale: float | None,
    start: Literal["chain", "renoise"],
    init: Path | None,
    against: tuple[str, ...],
    seed: int,
    model: str,
    device: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Learn a key's token by gradient descent.

    This is the paper's own method (arXiv 2503.11945): the token is learned on images of the PROMPTs, so that the
    extractor reads the key's message from them. The model and the extractor stay as they are. The model must be of
    the Stable Diffusion 1 or 2 family and carry an extractor. The computation runs in float32.
    """
    from privgen.watermark.key import load_key

    owner = load_key(key)
    import torch

    from privgen.diffusion.sampling import GUIDANCE
    from privgen.hub import EMBEDDED, Placement
    from privgen.watermark.networks import Networks
    from privgen.watermark.token import Token, check_token_path
    from privgen.watermark.write.token_by_gradient import OptimiseOptions, optimise_token

    check_token_path(output, overwrite=overwrite)
    first = None if init is None else Token.load(init)
    if guidance_scale is None:
        guidance_scale = GUIDANCE if model in EMBEDDED else OptimiseOptions.guidance_scale
    settings = OptimiseOptions(
        steps=steps,
        tau=tau,
        vectors=vectors or (1 if first is None else first.vectors),
        lambda_w=lambda_w,
        lambda_z=lambda_z,
        lr=lr,
        guidance_scale=guidance_scale,
        unrolled_steps=unrolled_steps,
        batch_size=batch_size,
        start=start,
        attack=_any_of(against),
        init=first,
    )
    networks = Networks(model, Placement(device, "float32"))
    generator = torch.Generator().manual_seed(seed)
    with _bar(steps) as progress:
        result = optimise_token(
            networks.pipeline,
            networks.extractor,
            owner,
            prompts=prompts,
            options=settings,
            generator=generator,
            progress=progress,
        )
    last = result.history[-1]
    record = {
        **_record(result.token),
        "steps": len(result.history),
        "loss": last.loss,
        "message_loss": last.message_loss,
        "latent_loss": last.latent_loss,
        "bit_accuracy": last.bit_accuracy,
        "file": result.token.save(output, overwrite=overwrite),
    }
    echo(record, as_json=as_json)


@token.command(
    epilog=options.examples(
        "privgen token show alice.safetensors",
        "privgen token show alice.safetensors --json",
    )
)
@click.argument("file", type=click.Path(path_type=Path))
@options.json()
def show(file: Path, as_json: bool) -> None:
    """Print whose token FILE is, and how it was made."""
    from privgen.watermark.token import Token

    echo(_record(Token.load(file)), as_json=as_json)


def _record(token: Token) -> dict[str, object]:
    """What may be printed of a token."""
    return {
        "name": token.name,
        "key_id": token.key_id,
        "vectors": token.vectors,
        "dim": token.embedding.shape[1],
        "tau": token.tau,
        "metadata": dict(token.metadata),
    }


def _any_of(texts: tuple[str, ...]) -> RandomDistortion | None:
    """Return an attack that draws one of the given ones, or none, each time, with equal probabilities.

    Raises:
        UsageError: there is no such attack; or a text is several attacks, or one that changes the size of images.
    """
    from privgen.attacks import Attack, Choice, RandomDistortion
    from privgen.errors import UsageError

    table = []
    for text in texts:
        attack = parse(text)
        if not (isinstance(attack, Attack) and attack.keeps_size):
            raise UsageError(f"--against {text} is not a single attack that keeps the size of images; choose another.")
        table.append(Choice(attack, attack.strength, attack.strength, 1 / (len(texts) + 1)))
    return RandomDistortion(tuple(table)) if table else None


@contextmanager
def _bar(steps: int) -> Iterator[Callable[[OptimiseStep], None]]:
    """A bar on standard error, if that is a terminal, which shows the loss and the bit accuracy of each step."""
    from privgen.io.progress import Bar

    with Bar(total=steps, desc="optimise", unit="step", disable=None) as bar:

        def show(step: OptimiseStep) -> None:
            bar.set_postfix(loss=f"{step.loss:.3g}", bits=f"{step.bit_accuracy:.0%}", refresh=False)
            bar.update()

        yield show
