"""How well each carrier marks objects of generated scenes, and what regeneration leaves of the marks.

    python benchmarks/object_carriers.py --n 12 --seed 1 --carrier latent

Objects of scenes with one, two and three objects are marked where mini attends to their words, all at the same quality
inside the masks. Prints for each setting, as it is, after JPEG 75 and after regeneration, the fraction of bits that
are read in the place where they were written, and the fraction of objects that are found without a mask.
"""

import json

import click

from privgen.data.scenes import PREVIEW_SEED, sample_spec
from privgen.evaluation.objects.carriers import carrier_scores
from privgen.hub import load_extra, load_pipeline
from privgen.watermark.objects.keys import OBJECT_CARRIERS, ObjectCarrierName


@click.command()
@click.option("--n", type=click.IntRange(2), default=12, show_default=True, help="Scenes of each setting.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of scenes, keys and noise.")
@click.option("--carrier", "carriers", type=click.Choice(OBJECT_CARRIERS), multiple=True, default=OBJECT_CARRIERS)
def main(n: int, seed: int, carriers: tuple[ObjectCarrierName, ...]) -> None:
    """Measure the carriers, and print one line for each setting."""
    pipe = load_pipeline("mini", device="cpu", dtype="float32")
    code = load_extra("object_code", "mini", device="cpu")
    first = PREVIEW_SEED + 1_000_000 * seed + 500_000
    for count, setting in enumerate(("one_object", "two_objects", "three_objects"), start=1):
        specs = [sample_spec(first + i, count=count, textured=False) for i in range(n)]
        for carrier in carriers:
            found = carrier_scores(pipe, {setting: specs}, seed, carrier, code)
            for name, scores in found.items():
                row = {key: None if value is None else round(value.value, 3) for key, value in scores.items()}
                click.echo(json.dumps({"carrier": carrier, "setting": name, **row}))


if __name__ == "__main__":
    main()
