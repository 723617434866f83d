"""Measure how well text alone writes messages, for several vectors, strengths, tau and guidance scales.

Each row is one setting. All settings have the same prompts, seeds and random messages; images are generated without
and with the token. With fewer vectors, the last words of a token say nothing, and their cells of the canvas stay
unmarked. The strength is a factor on what words say.

    python benchmarks/token_curve.py --n 32 --vectors 16 --vectors 12 --vectors 8 --json
"""

import json
from collections.abc import Sequence
from itertools import product
from typing import Any

import click
import torch
from scipy.stats import binom
from torch import Tensor
from tqdm import tqdm

from privgen.data.scenes import sample_spec
from privgen.diffusion.sampling import Sampling, generate, generate_batches
from privgen.evaluation.watermark.generation import draw_keys
from privgen.hub import load_extra, load_pipeline
from privgen.metrics.quality import psnr
from privgen.models.mappers import TokenMapper
from privgen.pipelines.pipeline_stable_diffusion_watermark import StableDiffusionWatermarkPipeline
from privgen.watermark.key import Key
from privgen.watermark.protocols import key_bits


FIRST_SCENE = 5 * 10**12  # the first of the scenes that no training run draws


def changed(mapper: TokenMapper, vectors: int, strength: float, complement: bool) -> TokenMapper:
    """The mapper of the model, with a factor on what its words say, and without what the last words say."""
    said = TokenMapper.from_config({**mapper.config, "complement": complement})
    said.load_state_dict(mapper.state_dict())
    with torch.no_grad():
        weight = said.direct.weight.unflatten(0, (mapper.config.vectors, -1))
        weight *= strength
        weight[vectors:] = 0
    return said.eval()


def measure(marked: Tensor, plain: Tensor, keys: Sequence[Key], extractor: Any) -> dict[str, float]:
    """The figures of one setting."""
    rounded = (marked * 255).round() / 255
    with torch.no_grad():
        logits = torch.cat([extractor(part) for part in rounded.split(16)])
    right = ((logits > 0).float() == key_bits(keys, extractor)).float()
    p_values = binom.sf(right.sum(1).numpy() - 1, right.shape[1], 0.5)
    return {
        "bit_accuracy": round(float(right.mean()), 4),
        "tpr_1e-6": round(float((p_values <= 1e-6).mean()), 4),
        "psnr_db": round(float(psnr(rounded, plain).mean()), 2),
    }


@click.command()
@click.option("--model", default="mini", show_default=True)
@click.option("--n", type=click.IntRange(2), default=32, show_default=True, help="Images of each setting.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--vectors", type=int, multiple=True, default=(16,), show_default=True, help="Words that say something.")
@click.option("--strength", type=float, multiple=True, default=(1.0,), show_default=True)
@click.option("--tau", type=int, multiple=True, default=(75,), show_default=True)
@click.option("--guidance-scale", type=float, multiple=True, default=(3.0,), show_default=True)
@click.option("--plain-negative", is_flag=True, help="Put no token into the negative prompt.")
@click.option("--json", "as_json", is_flag=True)
def main(
    model: str,
    n: int,
    seed: int,
    vectors: tuple[int, ...],
    strength: tuple[float, ...],
    tau: tuple[int, ...],
    guidance_scale: tuple[float, ...],
    plain_negative: bool,
    as_json: bool,
) -> None:
    """Print one row for each setting."""
    kind = StableDiffusionWatermarkPipeline
    pipe, extractor = load_pipeline(model, pipeline_class=kind), load_extra("extractor", model)
    words = load_extra("token_mapper", model)
    mappers = {
        (count, factor): changed(words, count, factor, not plain_negative)
        for count, factor in product(vectors, strength)
    }
    prompts = [sample_spec(FIRST_SCENE + 1000 * seed + i, count=1 + i % 2, textured=False).caption for i in range(n)]
    seeds = [1000 * seed + i for i in range(n)]
    keys = draw_keys(n, torch.Generator().manual_seed(seed), "curve")
    rows = []
    for scale in guidance_scale:
        sampling = Sampling(guidance_scale=scale)
        plain = generate(pipe, prompts, seeds, sampling)
        for ((count, factor), mapper), at in tqdm(list(product(mappers.items(), tau)), desc=f"guidance {scale:g}"):
            images = []
            for first in range(0, n, 8):
                part = slice(first, first + 8)
                options = {"keys": keys[part], "carrier": "token", "token_mapper": mapper, "tau": at}
                images.append(next(generate_batches(pipe, prompts[part], seeds[part], sampling, **options)))
            found = measure(torch.cat(images), plain, keys, extractor)
            rows.append(
                {
                    "vectors": count,
                    "strength": factor,
                    "tau": at,
                    "guidance_scale": scale,
                    "n": n,
                    "seed": seed,
                    **found,
                }
            )
            if not as_json:
                tqdm.write("  ".join(f"{key} {value}" for key, value in rows[-1].items()))
    if as_json:
        click.echo(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
