"""A model learns a language for patterns: what it is taught, and what it exports."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from PIL import Image

from privgen.diffusion.unrolled_ddim import Schedule, UnrolledDDIM
from privgen.hub import load_extra, load_pipeline
from privgen.models.initialise import seeded_weights
from privgen.models.mappers import LatentMapper, TokenMapper
from privgen.training.loop import LoopOptions, fit
from privgen.training.mini.autoencoder import AutoencoderRecipe, build_autoencoder
from privgen.training.mini.text_to_image import TextToImageRecipe, TextToImageTask
from privgen.training.watermark.attention_loss import AttentionLoss
from privgen.training.watermark.token_language import TokenLanguageRecipe, TokenLanguageTask
from privgen.watermark.token import encode_with_token, token_embeddings


N_BITS, WORDS, SIDE = 4, 4, 8
LOOP = LoopOptions(steps=40, batch_size=16, learning_rate=1e-2, warmup=1, ema_decay=0.5, preview_every=1000)


class Quiet(TokenLanguageTask):
    """Without pictures, which take long."""

    def preview(self):
        return Image.new("RGB", (4, 4))


@pytest.fixture(scope="module", autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A small model, as `privgen train text-to-image` makes it, and patterns to write in two by two cells."""
    folder = tmp_path_factory.mktemp("inputs")
    with seeded_weights(0):
        small = AutoencoderRecipe(size=64, channels=(8, 8, 8, 8), latent_channels=2)
        build_autoencoder(small).save_pretrained(folder / "vae")
        LatentMapper(N_BITS, channels=2, size=SIDE, strength=0.3).save_pretrained(folder / "latent_mapper")
    latents = folder / "latents.safetensors"
    shape = {"channels": (16, 16), "heads": (2, 2), "text_width": 16, "text_layers": 1, "max_length": 24}
    model = TextToImageRecipe(vae=folder / "vae", latents=latents, scenes=20, **shape)
    TextToImageTask(model, 0).export(folder / "model")
    return TokenLanguageRecipe(
        model=folder / "model",
        networks=folder,
        latents=latents,
        scenes=20,
        cells=2,
        photo_fraction=0.0,
        cycles=2,
        samples=LOOP.steps * LOOP.batch_size,
    )


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    task = Quiet(recipe, 0)
    with torch.no_grad():
        before = task(task.batch(list(range(1000, 1032))))
    fit(task, LOOP, folder, accelerator=Accelerator(cpu=True))
    return task, before, folder / "model"


def test_words_are_found_and_plain_predictions_stay(trained):
    task, before, _ = trained
    with torch.no_grad():
        after = task(task.batch(list(range(1000, 1032))))
    assert float(before["changed"]) < 1e-8
    assert float(after["changed"]) < 0.05
    assert float(after["attention"]) < 0.5 * float(before["attention"])


def test_what_is_exported_says_the_sentences(trained):
    task, _, folder = trained
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    mapper = TokenMapper.from_pretrained(folder / "privgen" / "token_mapper")
    assert (mapper.config.tau, mapper.config.vectors) == (task.recipe.tau, WORDS)
    assert (folder / "tokenizer" / "vocab.json").is_file()
    bits = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    said, opposite = token_embeddings(mapper, bits)
    torch.testing.assert_close(said, task.language.embeddings(task.language.of_message(bits)))
    torch.testing.assert_close(opposite, task.language.embeddings(-task.language.of_message(bits)))
    torch.testing.assert_close(encode_with_token(pipe, "a cat", said), encode_with_token(task.pipe, "a cat", said))


def test_a_run_goes_on_from_a_model_that_knows_words(trained, recipe):
    task, _, folder = trained
    again = Quiet(replace(recipe, start=folder), 0)
    for part in ("unet", "text_encoder"):
        expected = getattr(task, part).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in getattr(again, part).state_dict().items())
    messages = task.language.of_message(torch.tensor([[0.0, 1.0, 1.0, 0.0]]))
    words, expected = (language.embeddings(messages) for language in (again.language, task.language))
    torch.testing.assert_close(words, expected, rtol=1e-3, atol=1e-4)
    batch = task.batch(list(range(32)))
    plain = {name: value[~batch["marked"]] for name, value in batch.items()}
    torch.testing.assert_close(again.changed(plain), task.changed(plain))


def test_a_word_is_about_its_own_cell(recipe):
    language = Quiet(recipe, 0).language
    pattern, half = torch.zeros(1, 2, SIDE, SIDE), SIDE // 2
    pattern[:, :, :half, half:] = torch.randn(2, half, half, generator=torch.Generator().manual_seed(0))
    said = (language.embeddings(pattern) - language.words).abs().amax(dim=2)[0]
    assert (said > 1e-6).tolist() == [False, True, False, False]


def test_only_late_timesteps_and_short_captions_are_marked(recipe):
    task = Quiet(replace(recipe, marked_fraction=0.5), 0)
    batch = task.batch(list(range(200)))
    t, chosen = batch["t"], batch["marked"]
    assert 0.35 < float(chosen.float().mean()) < 0.65
    assert int(t[chosen].min()) >= recipe.earliest
    assert int(t[chosen].max()) <= recipe.tau
    assert int(t[~chosen].max()) > 900
    prompts = task.prompts(batch)
    assert all(not prompt for prompt, empty in zip(prompts, batch["captionless"], strict=True) if empty)
    said = [prompt for prompt, marked in zip(prompts, chosen, strict=True) if marked]
    assert any(said)
    assert max(len(task.tokenizer(prompt).input_ids) for prompt in said) + WORDS <= 24


def test_patterns_are_random_first_and_messages_later(recipe):
    task = Quiet(replace(recipe, turn=0.5, random_fraction=0.0, fade=0.5, loud=4.0), 0)
    first, last = task.batch(list(range(50))), task.batch(list(range(task.recipe.samples - 50, task.recipe.samples)))
    assert first["random"].float().mean() > 0.7
    assert not last["random"].any()
    assert first["loud"][0] == 4
    assert last["loud"][-1] == 1


def test_random_patterns_are_smooth_and_as_visible_as_messages(recipe):
    task = Quiet(recipe, 0)
    batch = task.batch(list(range(64)))
    rms = [
        (task.language.gains * task.pattern(batch | {"random": torch.full((64,), chosen)})).square().mean().sqrt()
        for chosen in (True, False)
    ]
    torch.testing.assert_close(*rms, rtol=0.1, atol=0)
    drawn = task.pattern(batch | {"random": torch.ones(64, dtype=torch.bool)})
    spectrum = torch.fft.fft2(drawn).abs().square().sum((0, 1))
    cycles = (torch.fft.fftfreq(SIDE) * SIDE).abs()
    assert spectrum[cycles > recipe.cycles].sum() < 1e-6 * spectrum.sum()


def test_photographs_are_said_nothing_of(recipe, root):
    photos = root / "privgen" / "data" / "photos" / "heldout"
    task = Quiet(replace(recipe, photos=photos, photo_fraction=1.0, empty_fraction=1.0), 0)
    batch = task.batch(list(range(30)))
    assert all(bool((task.photos.float() == row).flatten(1).all(1).any()) for row in batch["latents"])
    assert set(task.prompts(batch)) == {""}


def test_the_loss_of_attention_is_zero_where_every_position_finds_its_word(recipe):
    task = Quiet(recipe, 0)
    layer = task.unet.up_blocks[0].attentions[0].transformer_blocks[0].attn2
    attention = AttentionLoss([layer], 2)
    torch.nn.init.zeros_(layer.to_q.weight)
    torch.nn.init.zeros_(layer.to_k.weight)
    half = layer.to_q.out_features // 2  # of the heads
    layer.to_q.weight.data[:half, :half] = layer.to_k.weight.data[:half, :half] = 10 * torch.eye(half)
    side, keys = 8, torch.zeros(1, 24, 16)
    keys[0, 3:7, :4] = torch.eye(4)
    line = torch.arange(side) * 2 // side
    cells = (line[:, None] * 2 + line).flatten()
    queries = torch.nn.functional.pad(torch.eye(4)[cells], (0, 12))[None]
    for start, small in ((3, True), (4, False)):
        with attention.collecting(torch.tensor([start])):
            layer(queries, encoder_hidden_states=keys)
        (loss,) = attention.pop_all()
        assert (float(loss.detach()) < 1e-3) is small
    layer(queries, encoder_hidden_states=keys)
    assert attention.pop_all() == []


def test_mini_writes_what_the_residual_adds():
    """One late step of the model that ships: words change its prediction as R(m) says, and hardly otherwise."""
    pipe = load_pipeline("mini")
    token_mapper, latent_mapper = load_extra("token_mapper"), load_extra("latent_mapper")
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(2, (4, 48), generator=generator).float()
    z_t = torch.randn(4, 8, 16, 16, generator=generator)
    prompts = ["a cat on a pink background"] * 4
    denoiser = UnrolledDDIM(pipe.unet, Schedule.of(pipe.scheduler), 3.0, checkpointing=False)
    with torch.no_grad():
        said, opposite = token_embeddings(token_mapper, bits)
        plain = pipe.encode_prompt(prompts, "cpu", 1, True)[:2]
        marked = encode_with_token(pipe, prompts, said), encode_with_token(pipe, [""] * 4, opposite)
        start = denoiser.run(z_t, [999, 759, 519, 279], *plain, end=39)[-1]
        change = denoiser.run(start, [39], *marked)[-1] - denoiser.run(start, [39], *plain)[-1]
    along = torch.nn.functional.cosine_similarity(change.flatten(1), latent_mapper(bits).flatten(1))
    assert along.min() > 0.6
