"""Seconds and memory of the shield on a photograph of 12 megapixels, against methods that follow gradients.

    python benchmarks/protection_speed.py
    python benchmarks/protection_speed.py --method shield --method encoder --threads 2

Each method runs in a process of its own, which protects the photograph once and reports how long that took, without
loading the models, and the most memory that the process had. "shield, own size" draws at the size of the photograph;
all others work at their default sizes. Prints one JSON line for each, and then how much faster the shield is.
"""

import json
import resource
import subprocess
import sys
import time

import click
import torch

from privgen.data.photos import load_photos
from privgen.hub import Placement
from privgen.io.pixels import resize
from privgen.io.residual import add_residual
from privgen.protection.registry import method_class
from privgen.protection.surrogate import Surrogate
from privgen.training.recipes import load_recipe


WIDTH, HEIGHT = 4000, 3000
METHODS = {
    "shield": ("shield", {}),
    "shield, own size": ("shield", {"size": 0}),
    "encoder": ("encoder", {}),
    "advdm": ("advdm", {}),
}


def photograph() -> torch.Tensor:
    """A packaged photograph, enlarged, with some noise as of a sensor: (3, H, W) in [0, 1]."""
    folder = load_recipe("denoiser").model.photos
    small = torch.from_numpy(load_photos(folder)[0].copy()).permute(2, 0, 1)[None] / 255
    noise = torch.randn(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    return noise.mul_(0.01).add_(resize(small, (HEIGHT, WIDTH))[0]).clamp_(0, 1)


@torch.no_grad()
def measure(case: str, psnr: float, autoencoders: tuple[str, ...]) -> dict[str, object]:
    """Protect the photograph once in this process."""
    name, settings = METHODS[case]
    method, surrogate = (
        method_class(name)(**settings),
        Surrogate(autoencoders=autoencoders, placement=Placement("cpu")),
    )
    method.prepare(surrogate)
    pixels = photograph()
    started = time.perf_counter()
    change = method.change(pixels[None], surrogate, 10 ** (-psnr / 20), torch.Generator().manual_seed(0))
    result = add_residual(pixels, change[0], psnr=psnr, levels=255)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
    return {"case": case, "seconds": round(seconds, 2), "peak_gib": round(peak, 2), "psnr_db": round(result.psnr, 2)}


@click.command(help=__doc__.split("\n")[0])
@click.option("--method", "cases", multiple=True, type=click.Choice(tuple(METHODS)), default=tuple(METHODS))
@click.option("--psnr", type=float, default=36, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--autoencoder", "autoencoders", multiple=True, help="Of the method encoder; by default mini's.")
@click.option("--child", is_flag=True, hidden=True)
def main(cases: tuple[str, ...], psnr: float, threads: int, autoencoders: tuple[str, ...], child: bool) -> None:
    if child:
        torch.set_num_threads(threads)
        click.echo(json.dumps(measure(cases[0], psnr, autoencoders)))
        return
    rows = []
    for case in cases:
        options = ["--method", case, "--psnr", str(psnr), "--threads", str(threads), "--child"]
        options += [word for name in autoencoders for word in ("--autoencoder", name)]
        done = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout))
        click.echo(json.dumps(rows[-1]))
    own = [row["seconds"] for row in rows if row["case"] == "shield"]
    others = [row["seconds"] for row in rows if not row["case"].startswith("shield")]
    if own and others:
        click.echo(f"The shield is {min(others) / own[0]:.0f} times as fast as the fastest of the others.")


if __name__ == "__main__":
    main()
