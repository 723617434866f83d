"""Measure the time of noise assignment, of the published method and of other packages, in one run on one machine.

Install the other packages with `pip install pot lapx` and `pip install --no-deps torchcfm`, whose dependencies are not
needed. The script names the packages that are missing and leaves them out. Images are smooth and random, in [-1, 1].
Times are medians in milliseconds of the whole call, from images and noises to the noise of each image.
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import click
import diffusers
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import privgen
from privgen.noise_assignment.assign import METHODS, assign_noise, noise_permutation
from privgen.noise_assignment.matching import auction_matching, spread


Assign = Callable[[Tensor, Tensor], Tensor]

ESTIMATE_SECONDS = 5.0
BASELINES = {"torchcfm": "torchcfm", "pot": "ot", "lapx": "lap"}
# The denoiser of mini, with latents of 16 x 16 x 8 and a short caption.
UNET = {
    "sample_size": 16,
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": (48, 96, 160),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 1,
    "cross_attention_dim": 128,
    "norm_num_groups": 16,
}
LATENT, TOKENS = (8, 16, 16), 24


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def draw(batch: int, dim: int, device: str) -> tuple[Tensor, Tensor]:
    """Draw smooth random images or latents, and noise, `(B, 3 or 4, side, side)` with `dim` values each."""
    shapes = [(channels, round((dim / channels) ** 0.5)) for channels in (3, 4)]
    fitting = [(channels, side) for channels, side in shapes if channels * side**2 == dim]
    if not fitting:
        raise click.BadParameter(f"expected 3 * side * side or 4 * side * side values per image, got {dim}")
    channels, side = fitting[0]
    generator = seeded()
    coarse = torch.rand(batch, channels, 4, 4, generator=generator) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")
    return images.to(device), torch.randn(images.shape, generator=generator).to(device)


def ours(method: str, candidates: int | None = None) -> Assign:
    return lambda x, e: assign_noise(x, e, method=method, candidates=candidates, generator=seeded())


def solved(cost: Callable[[Tensor, Tensor], Tensor], solve: Callable[[np.ndarray], np.ndarray]) -> Assign:
    return lambda x, e: e[torch.from_numpy(solve(cost(x.flatten(1), e.flatten(1)).cpu().numpy())).to(e.device)]


def squared(x: Tensor, e: Tensor) -> Tensor:
    return torch.cdist(x, e).square()


def by_scipy(cost: np.ndarray) -> np.ndarray:
    return linear_sum_assignment(cost)[1]


def torchcfm_methods() -> dict[str, Assign]:
    from torchcfm.optimal_transport import OTPlanSampler

    sampler = OTPlanSampler("exact")
    return {"torchcfm": lambda x, e: sampler.sample_plan(x, e, replace=False)[1]}


def pot_methods() -> dict[str, Assign]:
    import ot

    def solve(cost: np.ndarray) -> np.ndarray:
        return ot.emd(ot.unif(len(cost)), ot.unif(len(cost)), cost).argmax(1)

    return {"pot": solved(squared, solve)}


def lapx_methods() -> dict[str, Assign]:
    import lap

    def solve(cost: np.ndarray) -> np.ndarray:
        return lap.lapjv(cost)[1].astype(np.int64)

    return {"lapx": solved(squared, solve), "lapx on dot products": solved(lambda x, e: -x @ e.T, solve)}


def baselines() -> dict[str, Assign]:
    """The methods of the packages that are installed; the others are named on standard error."""
    found: dict[str, Assign] = {}
    for name, methods in (("torchcfm", torchcfm_methods), ("pot", pot_methods), ("lapx", lapx_methods)):
        try:
            found |= methods()
        except ImportError as error:
            click.echo(f"{name} is not measured ({error}); see the top of this script to install it", err=True)
    return found


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def published_cost(x: Tensor, e: Tensor) -> tuple[float, bool]:
    """Seconds for the published cost, broadcast distances in float16, and whether a part was extrapolated.

    All distances together need B x B x D values, so rows of them are computed in turn, with the same result.
    """
    x, e = x.flatten(1).half(), e.flatten(1).half()
    rows = max(1, min(len(x), 2**27 // e.numel()))
    spent, done = 0.0, 0
    while done < len(x) and spent < ESTIMATE_SECONDS:
        part = x[done : done + rows]
        spent += seconds(lambda part=part: torch.linalg.vector_norm(0.1 * part[:, None] - 0.1 * e[None], dim=2))
        done += len(part)
    return spent * len(x) / done, done < len(x)


def measure_row(batch: int, dim: int, methods: dict[str, Assign], repeats: int, device: str) -> dict:
    """Measure one row of the table. The methods take turns, so that all share a busy moment of the machine."""
    x, e = draw(batch, dim, device)
    for method in methods.values():
        method(x[:8], e[:8])
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, method in methods.items():
            times[name].append(1000 * seconds(lambda method=method: method(x, e)))
    milliseconds = {name: median(values) for name, values in times.items()}
    cost, estimated = published_cost(x, e)
    distances = torch.cdist(x.flatten(1), e.flatten(1)).mul(0.1).half().cpu().numpy()
    milliseconds["published"] = 1000 * (cost + seconds(lambda: by_scipy(distances)))
    dots = -x.flatten(1) @ e.flatten(1).T
    auction = auction_matching(dots)
    return {
        "batch": batch,
        "dim": dim,
        "milliseconds": {name: round(value, 3) for name, value in milliseconds.items()},
        "published_estimated": estimated,
        "auction_rounds": auction.rounds,
        "auction_gap": round(auction.gap / spread(dots) / batch, 6),
    }


def equals_exact(batch: int, dim: int) -> bool:
    """Whether the permutation is that of SciPy for squared distances, computed by subtraction in float64."""
    x, e = draw(batch, dim, "cpu")
    x_flat, e_flat = x.flatten(1).double(), e.flatten(1).double()
    distances = torch.cdist(x_flat, e_flat, compute_mode="donot_use_mm_for_euclid_dist").square()
    return bool((noise_permutation(x, e).numpy() == by_scipy(distances.numpy())).all())


def measure_alignment(dim: int) -> dict[str, dict[int, float]]:
    """The mean projection of the assigned noise on its image, in standard deviations of a random noise."""
    methods = {"linear": ours("linear")} | {f"knn {k}": ours("knn", k) for k in (4, 16, 64)}
    rows: dict[str, dict[int, float]] = {name: {} for name in methods}
    for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        x, e = draw(512, dim, "cpu")
        for name, method in methods.items():
            noise = torch.cat([method(*pair) for pair in zip(x.split(batch), e.split(batch), strict=True)])
            projections = (x * noise).flatten(1).sum(1) / x.flatten(1).norm(dim=1)
            rows[name][batch] = round(projections.mean().item(), 3)
    return rows


def step_seconds(batch: int, repeats: int, device: str) -> tuple[float, str]:
    """Seconds of one training step of mini's denoiser, and where its configuration comes from."""
    config = Path(privgen.__file__).parent / "models" / "mini" / "unet" / "config.json"
    shipped = config.is_file()
    unet = UNet2DConditionModel.from_config(json.loads(config.read_text()) if shipped else UNET).to(device)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)
    latents = torch.randn(batch, unet.config.in_channels, *LATENT[1:], generator=seeded()).to(device)
    prompts = torch.randn(batch, TOKENS, unet.config.cross_attention_dim, generator=seeded()).to(device)
    t = torch.randint(1000, (batch,), generator=seeded()).to(device)

    def step() -> None:
        loss = (unet(latents, t, prompts).sample - latents).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return median(seconds(step) for _ in range(repeats)), "embedded model" if shipped else "as in this script"


def measure_fractions(steps: dict[int, float], repeats: int, device: str) -> dict:
    """The fraction of a training step that assignment adds, for batches of 64 and 256 latents."""
    results: dict[str, object] = {}
    for batch in (64, 256):
        step, source = steps.get(batch, 0.0) / 1000, "given"
        if not step:
            step, source = step_seconds(batch, repeats, device)
        x, e = (torch.randn(batch, *LATENT, generator=seeded()).to(device) for _ in range(2))
        e = e.flip(0)
        ours("linear")(x, e)
        assigning = median(seconds(lambda x=x, e=e: ours("linear")(x, e)) for _ in range(max(repeats, 9)))
        results |= {
            f"fraction_of_step_{batch}": round(assigning / step, 5),
            f"step_{batch}": {"milliseconds": round(1000 * step, 1), "source": source},
        }
    return results


def speedups(table: list[dict], names: list[str]) -> dict[str, float | None]:
    """The smallest speedup over all dimensions at a batch of 1024; None if it was not measured."""
    rows = [row["milliseconds"] for row in table if row["batch"] == 1024]

    def over(others: list[str]) -> float | None:
        if not rows or not others:
            return None
        return round(min(min(row[name] for name in others) / row["linear"] for row in rows), 2)

    return {
        "speedup_over_published_1024": over(["published"]),
        "speedup_over_best_baseline_1024": over(names),
        "speedup_over_cdist_and_scipy_1024": over(["cdist and scipy"]),
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def markdown(table: list[dict]) -> str:
    names = list(table[0]["milliseconds"])
    lines = ["| batch | dim | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for row in table:
        cells = [f"{row['milliseconds'][name]:.1f}" for name in names]
        if row["published_estimated"]:
            cells[names.index("published")] += " (est.)"
        lines.append(f"| {row['batch']} | {row['dim']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--batch", "batches", multiple=True, type=click.IntRange(2), default=(128, 256, 512, 1024, 2048, 4096))
@click.option("--dim", "dims", multiple=True, type=click.IntRange(3), default=(3072, 16384), help="Values per image.")
@click.option("--repeats", type=click.IntRange(1), default=5, help="How often each method is timed.")
@click.option("--exact-up-to", type=int, default=1024, help="Largest batch that is compared with the exact optimum.")
@click.option("--step-ms", type=(int, float), multiple=True, help="BATCH MILLISECONDS of a training step.")
@click.option("--device", default="cpu", help="Where images and noises are.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole record instead of the table.")
@click.option(
    "--record",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Print the table of this record; nothing is measured.",
)
def main(
    batches: tuple[int, ...],
    dims: tuple[int, ...],
    repeats: int,
    exact_up_to: int,
    step_ms: tuple[tuple[int, float], ...],
    device: str,
    as_json: bool,
    record: Path | None,
) -> None:
    """Measure noise assignment against the published way and other packages."""
    if record is not None:
        click.echo(markdown(json.loads(record.read_text())["table"]))
        return
    others = baselines()
    methods = {name: ours(name) for name in METHODS[1:]} | {"cdist and scipy": solved(squared, by_scipy)} | others
    table = []
    for dim in dims:
        for batch in batches:
            table.append(measure_row(batch, dim, methods, repeats, device))
            click.echo(f"batch {batch}, dim {dim}: {table[-1]['milliseconds']}", err=True)
    sizes = [(batch, dim) for dim in dims for batch in batches if batch <= exact_up_to]
    measured = {
        "equal_to_exact": int(all(equals_exact(*size) for size in sizes)) if sizes else None,
        **speedups(table, list(others)),
        **measure_fractions(dict(step_ms), repeats, device),
        "alignment": measure_alignment(dims[0]),
        "table": table,
        "command": "python benchmarks/assignment.py " + " ".join(sys.argv[1:]),
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": {"privgen": privgen.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
        | {package: installed(package) for package in ("scipy", "numpy", *BASELINES)},
    }
    click.echo(json.dumps(measured, indent=2) if as_json else markdown(table))


if __name__ == "__main__":
    main()
