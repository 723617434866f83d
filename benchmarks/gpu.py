"""Whether everything that can run on a GPU computes there what it computes on the CPU, and how fast and large it is.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --tiny

It needs no network: pipelines of the sizes of Stable Diffusion 1.5 and SDXL have random weights. It takes about eight
minutes at most: measurements that would begin later are left out, and named. `--tiny` takes small pipelines and few
numbers, so that the script itself can be tried on a CPU. The exit code is 1 if a check fails, or if there is no GPU.
"""

import gc
import json
import platform
import string
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import click
import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from privgen.attacks import parse_attack
from privgen.hub import DTYPES
from privgen.io.images import load_image
from privgen.models.family import Canvas
from privgen.models.initialise import seeded_weights
from privgen.models.latent_reader import LatentReader
from privgen.models.mappers import LatentMapper
from privgen.noise_assignment.assign import assign_noise
from privgen.training.watermark.adapt import noise_patterns
from privgen.watermark.key import Key, Secret
from privgen.watermark.networks import Networks
from privgen.watermark.tile.embed import mark_image
from privgen.watermark.tile.pattern import pattern_of
from privgen.watermark.tile.search import detect_tiles
from privgen.watermark.watermark import Watermark


KEY = Key("alice", Secret(bytes(31) + b"\1"))
PHOTO = Path(__file__).parents[1] / "privgen/data/photos/heldout/skimage-astronaut.jpg"
ATTACKS = ("jpeg=50", "blur=1", "noise=0.05", "crop=0.5", "rotation=10", "brightness=1.5", "scale=0.5", "screenshot")
MARKS = {"tile": ("tile", 0), "latent": ("latent", 0), "both": ("tile+latent", 0), "robust-steps": ("latent", 10)}
PROMPT = "a photograph"
TOKENS = [*string.ascii_lowercase, *(sign + "</w>" for sign in string.ascii_lowercase)]
TOKENS += ["<|startoftext|>", "<|endoftext|>"]
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@dataclass(frozen=True)
class Shape:
    """The sizes of a pipeline."""

    size: int
    unet: dict[str, Any]
    text: tuple[dict[str, Any], ...]
    vae: tuple[int, ...]
    steps: int = 25

    @property
    def groups(self) -> int:
        """Groups of the autoencoder's normalisation."""
        return min(32, self.vae[0] // 2)


def text(width: int, layers: int, heads: int, words: int = 49408) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": words,
        "bos_token_id": len(TOKENS) - 2,
        "eos_token_id": len(TOKENS) - 1,
    }


XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
SHAPES = {
    "stable-diffusion-1.5": Shape(
        512,
        {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        (text(768, 12, 12),),
        (128, 256, 512, 512),
    ),
    "sdxl": Shape(
        1024,
        XL
        | {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        (text(768, 12, 12), text(1280, 32, 20)),
        (128, 256, 512, 512),
    ),
}
_TINY_BLOCKS = {"layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 8}
TINY_SHAPES = {
    "stable-diffusion-1.5": Shape(
        64,
        {
            "sample_size": 32,
            "block_out_channels": (16, 32),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 32,
        }
        | _TINY_BLOCKS,
        (text(32, 2, 4, 200),),
        (16, 16),
        2,
    ),
    "sdxl": Shape(
        64,
        XL
        | {
            "sample_size": 32,
            "block_out_channels": (16, 32, 32),
            "transformer_layers_per_block": (1, 1, 1),
            "cross_attention_dim": 64,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        }
        | _TINY_BLOCKS,
        (text(32, 2, 4, 200), text(32, 2, 4, 200)),
        (16, 16),
        2,
    ),
}


@dataclass
class Run:
    """Where it runs, how much, and what was found."""

    device: torch.device
    tiny: bool
    end: float
    checks: dict[str, bool] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def dtypes(self) -> tuple[str, ...]:
        return ("float32", "float16", "bfloat16") if self.device.type == "cuda" else ("float32", "bfloat16")

    def check(self, name: str, passed: bool, figure: float) -> None:
        self.checks[name] = passed
        click.echo(f"{'ok  ' if passed else 'FAIL'} {name}: {figure:.3g}")

    def figure(self, name: str, value: Any, unit: str = "") -> None:
        self.figures[name] = value
        click.echo(f"     {name}: {value if isinstance(value, str) else f'{value:.4g}'} {unit}")

    def attempt(self, name: str, part: Callable[[], None]) -> None:
        """Do one part, unless the time is over; an error of one part fails, and does not end the run."""
        if time.perf_counter() > self.end:
            self.left_out.append(name)
            click.echo(f"left out, because the time is over: {name}")
            return
        try:
            part()
        except (RuntimeError, ValueError, TypeError) as error:  # such as out of memory
            self.check(f"{name} ({type(error).__name__}: {str(error).splitlines()[0][:120]})", False, float("nan"))
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, call: Callable[[], object]) -> float:
        """The time of a call, until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def measured(self, call: Callable[[], object], repeats: int = 3) -> tuple[float, float | None]:
        """The median time of a call after a first one, and the peak memory of the device in GiB."""
        call()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        spent = median(self.seconds(call) for _ in range(1 if self.tiny else repeats))
        return spent, torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None


def check_tile(run: Run, dtype: str) -> None:
    """Marks that the device writes are read on the CPU and on the device, and so are those that the CPU writes."""
    pattern, photo = pattern_of(KEY), load_image(PHOTO).pixels
    there = photo.to(run.device, DTYPES[dtype])
    marked = mark_image(there, pattern, levels=255).pixels
    assert marked.device == there.device
    for name, change in {"as it is": lambda x: x, "a part, mirrored": lambda x: x[:, 60:, 100:].flip(-1)}.items():
        [[at_home]] = detect_tiles([change(marked.cpu())], [pattern])
        [[away]] = detect_tiles([change(marked.to(there))], [pattern])
        difference = abs(away.z / at_home.z - 1)
        good = difference < 0.03 and min(at_home.matches, away.matches) == 48
        run.check(f"tile, {name}, {dtype}: read as on the CPU", good, difference)
    off = abs(mark_image(photo, pattern).gain / mark_image(there, pattern).gain - 1)
    run.check(f"tile, {dtype}: as loud as on the CPU", off < 0.05, off)


def check_mini(run: Run, dtype: str) -> None:
    """Images that mini draws with a mark on the device are like those of the CPU, and are read there and here."""
    images = {}
    for device, kind in ((torch.device("cpu"), "float32"), (run.device, dtype)):
        mark = Watermark.from_pretrained("mini", device=str(device), dtype=kind)
        pipe = mark.networks.pipeline
        pipe.set_progress_bar_config(disable=True)
        with mark.on(pipe, KEY, carrier="latent"):
            images[device, kind] = pipe(
                ["a red apple", "a blue car"],
                num_inference_steps=4 if run.tiny else 20,
                generator=[torch.Generator().manual_seed(i) for i in range(2)],
                output_type="pt",
            ).images.float()
    expected, got = images.values() if len(images) == 2 else [*images.values()] * 2
    difference = float((expected.cpu() - got.cpu()).abs().mean())
    run.check(f"mini, {dtype}: draws as on the CPU", difference < (1e-3 if dtype == "float32" else 0.05), difference)
    # The last pipeline's networks read on the device, new ones on the CPU.
    for name, networks in ((str(run.device), mark), ("cpu", Watermark.from_pretrained("mini", device="cpu"))):
        p = max(found.p_value for found in networks.detect(list(got), KEY))
        run.check(f"mini, {dtype}: the mark is read on {name}", p < 1e-6, p)


def check_attacks(run: Run, dtype: str) -> None:
    """Attacks do the same on the device as on the CPU."""
    images = load_image(PHOTO).pixels[None, :, :256, :256]
    for name in ATTACKS:
        attack = parse_attack(name)
        expected = attack(images, generator=torch.Generator().manual_seed(0))
        got = attack(images.to(run.device, DTYPES[dtype]), generator=torch.Generator().manual_seed(0))
        difference = float((got.float().cpu() - expected).abs().mean())
        run.check(f"{name}, {dtype}: as on the CPU", difference < (1e-3 if dtype == "float32" else 0.02), difference)


def tokenizer() -> CLIPTokenizer:
    """A tokenizer that knows letters only."""
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(TOKENS)}, merges=[], model_max_length=77)


def pipeline(run: Run, shape: Shape) -> Any:
    """A pipeline of random weights; in bfloat16, in which random weights cannot overflow, unless on a CPU."""
    with torch.device(run.device), seeded_weights(0):
        older = len(shape.text) == 1
        encoders = [
            (CLIPTextModel if i == 0 else CLIPTextModelWithProjection)(CLIPTextConfig(**config))
            for i, config in enumerate(shape.text)
        ]
        levels = len(shape.vae)
        vae = AutoencoderKL(
            block_out_channels=shape.vae,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=shape.groups,
            sample_size=shape.size,
            scaling_factor=0.18215 if older else 0.13025,
        )
        unet = UNet2DConditionModel(**shape.unet)
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    parts = {"vae": vae, "unet": unet, "text_encoder": encoders[0], "scheduler": scheduler}
    parts["tokenizer"] = tokenizer()
    if older:
        extras = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = StableDiffusionPipeline(**parts, **extras)
    else:
        parts |= {"text_encoder_2": encoders[1], "tokenizer_2": tokenizer()}
        pipe = StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=True, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(run.device, torch.bfloat16 if run.device.type == "cuda" else torch.float32)


def networks_of(pipe: Any) -> Networks:
    """Networks that write and read marks in the pipeline's latents, as `privgen adapt` makes them."""
    canvas = Canvas.of_pipeline(pipe)
    patterns = noise_patterns(48, canvas)
    mapper = LatentMapper(48, canvas.channels, canvas.latents, strength=0.1)
    mapper.patterns.data.copy_(patterns)
    reader = LatentReader.from_vae(pipe.vae.float().cpu(), patterns, size=canvas.size)
    pipe.vae.to(pipe.unet.device, pipe.unet.dtype)
    ready = [network.eval().requires_grad_(False).to(pipe.unet.device) for network in (mapper, reader)]
    return Networks.of(pipeline=pipe, latent_mapper=ready[0], extractor=ready[1])


def measure_pipeline(run: Run, name: str) -> None:
    """Time and peak memory of one image, without a mark and with marks of each kind."""
    shape = (TINY_SHAPES if run.tiny else SHAPES)[name]
    pipe = pipeline(run, shape)
    networks = networks_of(pipe)
    mark = Watermark(networks)

    def draw() -> object:
        return pipe(PROMPT, num_inference_steps=shape.steps, output_type="pt").images

    plain, memory = run.measured(draw)
    run.figure(f"{name}: seconds an image", plain, "s")
    if memory is not None:
        run.figure(f"{name}: peak memory", memory, "GiB")
    for label, (carrier, steps) in MARKS.items():
        if time.perf_counter() > run.end:
            run.left_out.append(f"{name}, {label}")
            continue
        if steps and len(shape.text) > 1:
            run.left_out.append(f"{name}, {label}: for Stable Diffusion 1 and 2 only")
            continue
        with mark.on(pipe, KEY, carrier=carrier, robust_steps=steps):  # type: ignore[arg-type]
            marked, memory = run.measured(draw)
        run.figure(f"{name}, {label}: time_ratio", marked / plain)
        if memory is not None:
            run.figure(f"{name}, {label}: peak memory", memory, "GiB")


def measure_reading(run: Run) -> None:
    """Images a second, of 512 pixels: marked and read by mini's networks, and by tiles, in place and by a search."""
    pattern, photo = pattern_of(KEY), load_image(PHOTO).pixels.to(run.device)
    others = [pattern_of(Key("other", Secret(bytes(30) + bytes([1, i])))) for i in range(3 if run.tiny else 40)]
    mark = Watermark.from_pretrained("mini", device=str(run.device))
    batch = photo[None].repeat(2 if run.tiny else 64, 1, 1, 1)
    calls: dict[str, tuple[int, Callable[[], object]]] = {
        "tile, marking": (1, lambda: mark_image(photo, pattern)),
        "tile, reading in place": (1, lambda: detect_tiles([photo], [pattern], search=False)),
        "tile, searching an unmarked image": (1, lambda: detect_tiles([photo], [pattern])),
        f"tile, searching for {len(others)} keys": (1, lambda: detect_tiles([photo], others)),
        f"latent, reading {len(batch)} images": (len(batch), lambda: mark.detect(batch, KEY, carrier="latent")),
    }
    for name, (count, call) in calls.items():
        run.figure(f"{name}: images a second", count / run.measured(call)[0])


def measure_assignment(run: Run) -> None:
    """Milliseconds to assign noise to latents of Stable Diffusion's shape."""
    for batch in (64, 128) if run.tiny else (1024, 2048, 4096, 8192, 16384):
        generator = torch.Generator().manual_seed(0)
        latents, noise = (torch.randn(batch, 4, 16, 16, generator=generator).to(run.device) for _ in range(2))

        def assign(latents: Tensor = latents, noise: Tensor = noise) -> Tensor:
            return assign_noise(latents, noise)

        before, after = (latents - noise).norm(), (latents - assign()).norm()
        run.check(f"assignment of {batch}: nearer than before", bool(after < before), float(after / before))
        run.figure(f"assignment of {batch}", 1000 * run.measured(assign, 1)[0], "ms")
        if time.perf_counter() > run.end:
            break


def card(device: torch.device) -> str:
    """The name of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


@click.command(help=__doc__.split("\n")[0], context_settings={"show_default": True})
@click.option("--device", help="Where to compute; by default the GPU.")
@click.option("--tiny", is_flag=True, help="Small pipelines and few numbers, to try the script, also on a CPU.")
@click.option("--minutes", type=float, default=8.0, help="Nothing begins after so many minutes.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write a record here.")
def main(device: str | None, tiny: bool, minutes: float, file: Path | None) -> None:
    if device is None:
        if not torch.cuda.is_available() and not tiny:
            click.echo(
                "There is no GPU here; name another device by --device cpu, or try the script by --tiny.", err=True
            )
            sys.exit(1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    diffusers.logging.set_verbosity_error()
    run = Run(torch.device(device), tiny, start + 60 * minutes)
    click.echo(f"{card(run.device)}, PyTorch {torch.__version__}")
    for dtype in run.dtypes:
        run.attempt(f"tile, {dtype}", lambda dtype=dtype: check_tile(run, dtype))
        run.attempt(f"mini, {dtype}", lambda dtype=dtype: check_mini(run, dtype))
        run.attempt(f"attacks, {dtype}", lambda dtype=dtype: check_attacks(run, dtype))
    run.attempt("reading", lambda: measure_reading(run))
    run.attempt("assignment", lambda: measure_assignment(run))
    for name in SHAPES:
        run.attempt(name, lambda name=name: measure_pipeline(run, name))
    seconds = time.perf_counter() - start
    failed = [name for name, passed in run.checks.items() if not passed]
    click.echo(f"{len(run.checks) - len(failed)} of {len(run.checks)} checks passed, in {seconds:.0f} s")
    if file:
        record = {"card": card(run.device), "torch": torch.__version__, "tiny": tiny, "seconds": round(seconds, 1)}
        record |= {"checks": run.checks, "figures": run.figures, "left_out": run.left_out}
        file.write_text(json.dumps(record, indent=2) + "\n")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
