"""Why a diffusion model hallucinates, in one picture, and what amplifying its score does.

A small network learns a grid of nine Gaussians. Drawn are the score of the data, which is known exactly, the score
that was learnt, the same amplified, and under each where samples from the same noise land. Between modes the true
score changes its direction at once; the learned one is smooth there, so that samples stop in between. Everything is
written to out/score.png.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor, nn

from privgen.data.sheets import save_picture
from privgen.data.toys import ExactDenoiser, GaussianMixture, gaussian_grid
from privgen.evaluation.hallucination.train_toy import ToyTraining, toy_scheduler, train_toy, training_set
from privgen.hallucination.amplification import Amplification
from privgen.hallucination.scheduler import AmplifiedScheduler
from privgen.metrics.hallucination import validate_mixture


OUT = Path("out/score.png")
TIMESTEP = 40
"""Where scores are drawn: the noise is about as wide as the gap between modes is."""
AMPLIFICATION = Amplification(1.6, window=(0, 100))
REACH = 1.5


def main(steps: int = 3000, samples: int = 2000, out: Path = OUT, seed: int = 0) -> dict[str, float]:
    """Train, sample, draw.

    Args:
        steps: of the training.
        samples: of each score.
        out: file of the picture.
        seed: of everything.

    Returns:
        Share of hallucinated samples by score.
    """
    data = gaussian_grid(3)
    training = ToyTraining(steps=steps)
    learned = train_toy(training_set(data, training, seed=seed), training, seed=seed)
    exact = ExactDenoiser(data, toy_scheduler())
    ways: dict[str, tuple[nn.Module, Amplification]] = {
        "true score": (exact, Amplification()),
        "learned score": (learned, Amplification()),
        f"learned score x {AMPLIFICATION.gamma:g}": (learned, AMPLIFICATION),
    }
    points = {name: sample(*way, samples=samples, seed=seed) for name, way in ways.items()}
    fields = {name: field(*way) for name, way in ways.items()}
    save_picture(draw(fields, points, data), out, overwrite=True)
    shares = {name: validate_mixture(x, data).fraction.value for name, x in points.items()}
    for name, share in shares.items():
        print(f"{name}: {share:.1%} of the samples hallucinated")
    print(f"The picture is {out}.")
    return shares


@torch.inference_mode()
def sample(network: nn.Module, amplification: Amplification, *, samples: int, seed: int) -> Tensor:
    """Samples, (B, 2), from the same noise for every network."""
    scheduler = AmplifiedScheduler(DDIMScheduler.from_config(toy_scheduler().config), amplification)
    scheduler.set_timesteps(100)
    x = torch.randn(samples, 2, generator=torch.Generator().manual_seed(seed))
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t).sample, t, x).prev_sample
    return x


def field(network: nn.Module, amplification: Amplification) -> Callable[[Tensor], Tensor]:
    """The score at `TIMESTEP`, -eps / sigma, as sampling uses it: (B, 2) to (B, 2)."""
    sigma = float((1 - toy_scheduler().alphas_cumprod[TIMESTEP]).sqrt())
    factor = amplification.gamma if amplification.acts_at(TIMESTEP) else 1.0
    return lambda x: -factor * network(x, TIMESTEP).sample / sigma


@torch.inference_mode()
def draw(
    fields: dict[str, Callable[[Tensor], Tensor]], points: dict[str, Tensor], data: GaussianMixture
) -> Image.Image:
    """Arrows of each score over its length, and the samples below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    line = torch.linspace(-REACH, REACH, 25)
    x, y = (axis.flatten() for axis in torch.meshgrid(line, line, indexing="xy"))
    figure = Figure(figsize=(3.6 * len(fields), 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    strongest = max(float(score(torch.stack([x, y], 1)).norm(dim=1).max()) for score in fields.values())
    for i, (name, score) in enumerate(fields.items(), 1):
        arrows = score(torch.stack([x, y], 1)).float()
        length = arrows.norm(dim=1, keepdim=True)
        direction = arrows / length.clamp_min(1e-6)
        above = figure.add_subplot(2, len(fields), i)
        above.quiver(x, y, direction[:, 0], direction[:, 1], length, cmap="viridis", clim=(0, strongest), scale=28)
        above.set_title(name, fontsize=10)
        below = figure.add_subplot(2, len(fields), len(fields) + i)
        wrong = validate_mixture(points[name], data).hallucinated
        for chosen, colour in ((~wrong, "tab:blue"), (wrong, "tab:red")):
            below.scatter(points[name][chosen, 0], points[name][chosen, 1], s=2, color=colour)
        below.set_title(f"{float(wrong.double().mean()):.1%} between modes", fontsize=10)
        for axes in (above, below):
            axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[], yticks=[], aspect="equal")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return Image.open(file).convert("RGB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000, help="of the training")
    parser.add_argument("--out", type=Path, default=OUT, help="file of the picture")
    arguments = parser.parse_args()
    main(arguments.steps, out=arguments.out)
