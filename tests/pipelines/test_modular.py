"""Modular pipelines: the block marks as `embed` does, and changes nothing else."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLAutoBlocks

from privgen import Key, UsageError, Watermark
from privgen.pipelines.modular import MarkStep


ALICE = Key.new("alice")
SIZE = 64


@pytest.fixture(scope="module")
def components(tiny):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny.tiny_of_family("sdxl", tiny.tiny_vae().eval()).components


def pipeline(components, *blocks):
    """Diffusers' own modular pipeline for SDXL, with our blocks at its end."""
    sequence = StableDiffusionXLAutoBlocks()
    for block in blocks:
        sequence.sub_blocks.insert(type(block).__name__, block, len(sequence.sub_blocks))
    pipe = sequence.init_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.update_components(**{name: part for name, part in components.items() if name in pipe.components})
    return pipe


def generate(pipe, **options):
    generator = torch.Generator().manual_seed(1)
    options = {"prompt": "a cat", "height": SIZE, "width": SIZE, "num_inference_steps": 1, **options}
    return pipe(generator=generator, output="images", **options)


@pytest.mark.filterwarnings("ignore:image 0. its mark can hardly be read")  # so small, and of an untrained model
@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_the_block_marks_what_plain_diffusers_makes(components, kind):
    mark = Watermark.from_pretrained("mini")
    plain = generate(pipeline(components), output_type=kind)
    marked = generate(pipeline(components, MarkStep(mark, carrier="tile")), output_type=kind, key=ALICE, payload=7)
    expected = mark.embed(plain, ALICE, carrier="tile", payload=7)
    assert type(marked) is type(plain)
    assert not np.array_equal(np.asarray(plain), np.asarray(marked))
    np.testing.assert_array_equal(np.asarray(marked), np.asarray(expected))


def test_what_cannot_be_marked_is_refused(components):
    pipe = pipeline(components, MarkStep())
    with pytest.raises(ValueError, match="'key' is missing"):
        generate(pipe)
    with pytest.raises(UsageError, match='leave out output_type="latent"'):
        generate(pipe, key=ALICE, output_type="latent")
