"""Shift the trajectories of points on a spiral, and see in how many denoising steps the shift washes out.

The protection `shift` inverts an image to noise, shifts the noise, and denoises it in a few steps (arXiv 2510.03089).
The paper shows on a spiral why the steps must be few: there, many steps bring the point back. This script trains a
small denoiser of a spiral within a minute. It shifts each point's noise by the same length in a random direction, and
measures two distances after denoising: from where the point was (the reconstruction error), and from the spiral.

What it finds: many steps bring a shifted point back to the spiral, but not to its own place on it. In 50 steps the
distance from the spiral stays small up to a shift of 1; in 4 or 8 steps it grows with any shift. The reconstruction
error grows in all cases, also in 50 steps.

    python examples/trajectory_shift.py --out out/trajectory-shift.png
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from privgen.data.sheets import save_picture
from privgen.data.toys import spiral
from privgen.diffusion.unrolled_ddim import Schedule, UnrolledDDIM
from privgen.evaluation.hallucination.train_toy import ToyTraining, toy_scheduler, train_toy
from privgen.io.plots import as_image, new_panels
from privgen.protection.inversion import denoise, inversion_timesteps, invert


OUT = Path("out/trajectory-shift.png")
STEPS = (4, 8, 50)
SHIFTS = (0.0, 0.25, 0.5, 1.0, 2.0)
EMBEDS = torch.zeros(1, 1, 1)  # the toy denoiser has no prompt


@dataclass(frozen=True, eq=False)
class Result:
    """What denoising makes of shifted points.

    Attributes:
        points: (N, 2), after denoising.
        error: root mean square distance from the points before the shift.
        off: root mean square distance from the spiral.
    """

    points: Tensor
    error: float
    off: float


def main(training: int = 3000, points: int = 500, out: Path = OUT, seed: int = 0) -> dict[tuple[int, float], Result]:
    """Train the denoiser, shift points, print both distances, and draw the picture.

    Args:
        training: optimiser steps.
        points: how many to shift.
        out: the file of the picture.
        seed: of everything random.

    Returns:
        The results by number of denoising steps and length of the shift.
    """
    generator = torch.Generator().manual_seed(seed)
    network = train_toy(spiral(torch.rand(20_000, generator=generator)), ToyTraining(steps=training), seed=seed)
    x_0 = spiral(torch.rand(points, generator=generator))
    direction = nn.functional.normalize(torch.randn(points, 2, generator=generator), dim=1)
    results = {(n, size): shift(network, x_0, size * direction, n) for n in STEPS for size in SHIFTS}
    print("steps  shift  reconstruction error  distance from the spiral")
    for (n, size), result in results.items():
        print(f"{n:5}  {size:5.2f}  {result.error:20.3f}  {result.off:24.3f}")
    save_picture(draw(x_0, results), out, overwrite=True)
    print(f"The picture is {out}.")
    return results


@torch.inference_mode()
def shift(network: nn.Module, x_0: Tensor, change: Tensor, n: int) -> Result:
    """Invert points (N, 2) in n steps, add a change to their noise, and denoise it in n steps."""
    ddim = UnrolledDDIM(network, Schedule.of(toy_scheduler()), guidance_scale=1.0)
    timesteps = inversion_timesteps(ddim.schedule, n)
    inversion = invert(x_0, ddim, timesteps, EMBEDS)
    after = denoise(inversion.noise + change, ddim, timesteps, EMBEDS)
    curve = spiral(torch.linspace(0, 1, 2000))
    distances = torch.cdist(after, curve).amin(dim=1)
    return Result(after, _rms((after - x_0).norm(dim=1)), _rms(distances))


def draw(x_0: Tensor, results: dict[tuple[int, float], Result]) -> Image.Image:
    """Draw the points after denoising, a row for each number of steps, coloured by where they were on the spiral."""
    figure, panels = new_panels(len(STEPS) * len(SHIFTS), columns=len(SHIFTS), width=2.1, height=2.3)
    place = x_0.norm(dim=1)
    for axes, ((n, size), result) in zip(panels, results.items(), strict=True):
        axes.scatter(result.points[:, 0], result.points[:, 1], s=2, c=place, cmap="viridis")
        axes.set_title(f"{n} steps, shift {size:g}\nerror {result.error:.2f}, off {result.off:.2f}", fontsize=8)
        axes.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), xticks=[], yticks=[], aspect="equal")
    return as_image(figure, dpi=90)


def _rms(distances: Tensor) -> float:
    return float(distances.square().mean().sqrt())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=int, default=3000, help="steps of the training")
    parser.add_argument("--out", type=Path, default=OUT, help="the file of the picture")
    arguments = parser.parse_args()
    main(arguments.training, out=arguments.out)
