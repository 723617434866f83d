"""The mapper trained through a frozen model: where it starts, and that it alone changes."""

import pytest
import torch
from safetensors.torch import save_file

from privgen.data.scenes import sample_spec
from privgen.models.extractor import Extractor
from privgen.models.initialise import seeded_weights
from privgen.models.mappers import LatentMapper, TokenMapper
from privgen.training.scene_latents import scene_seed
from privgen.training.watermark.token_mapper import TokenMapperRecipe, TokenMapperTask
from privgen.watermark.token import token_embeddings


N_BITS, DIM, SCENES = 6, 32, 12


@pytest.fixture
def bits(generator):
    return torch.randint(2, (4, N_BITS), generator=generator).float()


@pytest.fixture
def recipe(tiny, tmp_path):
    """A tiny pipeline, whose tokenizer spells captions by letters and so has room for short ones and few vectors."""
    pipe = tiny.tiny_pipeline("sd21")
    pipe.save_pretrained(tmp_path / "model")
    with seeded_weights(0):
        Extractor.from_vae(pipe.vae, N_BITS, 4).save_pretrained(tmp_path / "networks" / "extractor")
        LatentMapper(N_BITS, channels=4, size=16, strength=0.1).save_pretrained(
            tmp_path / "networks" / "latent_mapper"
        )
    drawn = torch.randn(SCENES, 4, 16, 16, generator=torch.Generator().manual_seed(0)).half()
    save_file({"latents": drawn, "ids": torch.zeros(SCENES, 77, dtype=torch.int16)}, tmp_path / "latents.safetensors")
    return TokenMapperRecipe(
        model=tmp_path / "model",
        networks=tmp_path / "networks",
        latents=tmp_path / "latents.safetensors",
        scenes=SCENES,
        vectors=2,
        hidden=8,
        tau=100,
        samples=8,
    )


def test_only_the_mapper_learns(recipe):
    task = TokenMapperTask(recipe, 0)
    short = [i for i in range(SCENES) if len(sample_spec(scene_seed(0, i)).caption) < 60]
    batch = task.batch([0, 1])
    batch["scene"] = torch.tensor((short * 2)[:2])
    scalars = task(batch)
    scalars["loss"].backward()
    learning = {name.split(".")[0] for name, value in task.named_parameters() if value.grad is not None}
    assert learning == {"token_mapper"}
    assert task.token_mapper.direct.weight.grad.abs().sum() > 0
    assert scalars["token_db"].isfinite()


def test_training_goes_on_from_a_mapper_that_is_there(recipe):
    kept = TokenMapper(N_BITS, 3, DIM, tau=120, complement=True)
    kept.save_pretrained(recipe.networks / "token_mapper")
    task = TokenMapperTask(recipe, 0)
    assert (task.token_mapper.config.vectors, task.tau) == (3, 120)
    assert torch.equal(task.token_mapper.direct.weight, kept.direct.weight)


def test_the_complement_is_the_opposite_message(bits):
    with_complement = TokenMapper(N_BITS, 3, DIM, hidden=8, complement=True)
    said, opposite = token_embeddings(with_complement, bits)
    torch.testing.assert_close(opposite, with_complement(1 - bits))
    torch.testing.assert_close(said, with_complement(bits))
    assert token_embeddings(TokenMapper(N_BITS, 3, DIM), bits)[1] is None
