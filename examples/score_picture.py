"""Draw why a diffusion model hallucinates, and what amplifying its score does, in one picture.

A small network learns a grid of nine Gaussians. The picture shows the true score of the data, the learned score and
the amplified one, and below each where samples from the same noise land. Between two modes, the true score changes its
direction at once. The learned score is smooth there, so that some samples stop between the modes. The picture is
out/score.png.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor, nn

from privgen.data.sheets import save_picture
from privgen.data.toys import GaussianMixture, gaussian_grid
from privgen.evaluation.hallucination.exact_denoiser import ExactDenoiser
from privgen.evaluation.hallucination.train_toy import ToyTraining, toy_scheduler, train_toy, training_set
from privgen.hallucination.amplification import Amplification
from privgen.hallucination.scheduler import AmplifiedScheduler
from privgen.io.plots import as_image, new_panels
from privgen.metrics.hallucination import validate_mixture


OUT = Path("out/score.png")
TIMESTEP = 40
"""Timestep at which scores are drawn; its noise is about as wide as the gap between modes."""
AMPLIFICATION = Amplification(1.6, window=(0, 100))
REACH = 1.5


def main(steps: int = 3000, samples: int = 2000, out: Path = OUT, seed: int = 0) -> dict[str, float]:
    """Train a network, sample with each score, and draw the picture.

    Args:
        steps: of the training.
        samples: how many to draw with each score.
        out: the file of the picture.
        seed: of everything random.

    Returns:
        The fraction of hallucinated samples by score.
    """
    data = gaussian_grid(3)
    training = ToyTraining(steps=steps)
    learned = train_toy(training_set(data, training, seed=seed), training, seed=seed)
    exact = ExactDenoiser(data, toy_scheduler())
    scores: dict[str, tuple[nn.Module, Amplification]] = {
        "true score": (exact, Amplification()),
        "learned score": (learned, Amplification()),
        f"learned score x {AMPLIFICATION.gamma:g}": (learned, AMPLIFICATION),
    }
    points = {name: sample(*score, samples=samples, seed=seed) for name, score in scores.items()}
    fields = {name: field(*score) for name, score in scores.items()}
    save_picture(draw(fields, points, data), out, overwrite=True)
    fractions = {name: validate_mixture(x, data).fraction for name, x in points.items()}
    for name, fraction in fractions.items():
        print(f"{name}: {fraction:.1%} of the samples are hallucinated")
    print(f"The picture is {out}.")
    return fractions


@torch.inference_mode()
def sample(network: nn.Module, amplification: Amplification, *, samples: int, seed: int) -> Tensor:
    """Sample points, (B, 2), from the same noise for every network."""
    scheduler = AmplifiedScheduler(DDIMScheduler.from_config(toy_scheduler().config), amplification)
    scheduler.set_timesteps(100)
    x = torch.randn(samples, 2, generator=torch.Generator().manual_seed(seed))
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t).sample, t, x).prev_sample
    return x


def field(network: nn.Module, amplification: Amplification) -> Callable[[Tensor], Tensor]:
    """The score at `TIMESTEP`, -eps / sigma, as sampling uses it, from (B, 2) to (B, 2)."""
    sigma = float((1 - toy_scheduler().alphas_cumprod[TIMESTEP]).sqrt())
    factor = amplification.gamma if amplification.acts_at(TIMESTEP) else 1.0
    return lambda x: -factor * network(x, TIMESTEP).sample / sigma


@torch.inference_mode()
def draw(
    fields: dict[str, Callable[[Tensor], Tensor]], points: dict[str, Tensor], data: GaussianMixture
) -> Image.Image:
    """Draw the directions of each score, coloured by its length, and below them the samples."""
    line = torch.linspace(-REACH, REACH, 25)
    x, y = (axis.flatten() for axis in torch.meshgrid(line, line, indexing="xy"))
    figure, panels = new_panels(2 * len(fields), columns=len(fields), width=3.6, height=3.7)
    strongest = max(float(score(torch.stack([x, y], 1)).norm(dim=1).max()) for score in fields.values())
    n = len(fields)
    for above, below, (name, score) in zip(panels[:n], panels[n:], fields.items(), strict=True):
        arrows = score(torch.stack([x, y], 1)).float()
        length = arrows.norm(dim=1, keepdim=True)
        direction = arrows / length.clamp_min(1e-6)
        above.quiver(x, y, direction[:, 0], direction[:, 1], length, cmap="viridis", clim=(0, strongest), scale=28)
        above.set_title(name, fontsize=10)
        wrong = validate_mixture(points[name], data).hallucinated
        for chosen, colour in ((~wrong, "tab:blue"), (wrong, "tab:red")):
            below.scatter(points[name][chosen, 0], points[name][chosen, 1], s=2, color=colour)
        below.set_title(f"{float(wrong.double().mean()):.1%} between modes", fontsize=10)
        for axes in (above, below):
            axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[], yticks=[], aspect="equal")
    return as_image(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000, help="steps of the training")
    parser.add_argument("--out", type=Path, default=OUT, help="the file of the picture")
    arguments = parser.parse_args()
    main(arguments.steps, out=arguments.out)
