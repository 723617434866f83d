from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from privgen.attacks import JPEG
from privgen.attacks.adversaries import (
    ADVERSARIES,
    DreamBooth,
    DreamBoothLoRA,
    Prior,
    PromptEmbeds,
    TextualInversion,
    adversary_class,
    load_prompt_embeds,
    mixed,
    purified,
    squares,
)
from privgen.diffusion.sampling import Sampling, generate
from privgen.errors import PrivgenError, UsageError


WORD = "zq"
KINDS = {
    "textual-inversion": TextualInversion(WORD, vectors=2, lr=0.1, batch_size=2),
    "prompt-embeds": PromptEmbeds(WORD, vectors=4, lr=0.1, batch_size=2),
    "dreambooth": DreamBooth(WORD, lr=1e-2, batch_size=2),
    "dreambooth-text": DreamBooth(WORD, lr=1e-2, batch_size=2, train_text_encoder=True),
    "lora": DreamBoothLoRA(WORD, rank=2, lr=1e-2, batch_size=2),
    "lora-prior": DreamBoothLoRA(
        WORD, rank=2, lr=1e-2, batch_size=2, prior_preservation=Prior("a cat", 2, sampling=Sampling(2))
    ),
}


@pytest.fixture(params=KINDS)
def adversary(request):
    return KINDS[request.param]


@pytest.fixture
def photos():
    """Three photographs of different sizes."""
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in ((40, 48), (32, 32), (90, 33))]


def weights_of(pipe):
    networks = {"unet": pipe.unet, "text_encoder": pipe.text_encoder, "vae": pipe.vae}
    return {
        f"{part}.{name}": (tensor.detach().clone(), tensor.requires_grad)
        for part, network in networks.items()
        for name, tensor in network.named_parameters()
    }


def draw(pipe, prompt=f"a {WORD} on a red box"):
    return generate(pipe, [prompt], [0], Sampling(2, 3.0))


def learn(adversary, pipe, photos, steps):
    return adversary.fit(pipe, photos, steps, generator=torch.Generator().manual_seed(0))


def test_the_given_pipeline_stays_as_it_is(adversary, tiny_pipe, photos):
    before, picture, words = weights_of(tiny_pipe), draw(tiny_pipe), len(tiny_pipe.tokenizer)
    states = torch.random.get_rng_state()
    learnt = learn(adversary, tiny_pipe, photos, 2)
    after = weights_of(tiny_pipe)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name][0], after[name][0]) for name in before)
    assert all(before[name][1] == after[name][1] for name in before)
    assert len(tiny_pipe.tokenizer) == words
    assert not tiny_pipe.text_encoder._forward_hooks
    assert torch.equal(torch.random.get_rng_state(), states)
    assert torch.equal(draw(tiny_pipe), picture)
    assert not torch.equal(draw(learnt), picture)


LEARNT = {
    "textual-inversion": lambda name: name == "text_encoder.text_model.embeddings.token_embedding.weight",
    "prompt-embeds": lambda name: False,
    "dreambooth": lambda name: name.startswith("unet."),
    "dreambooth-text": lambda name: name.startswith(("unet.", "text_encoder.")),
    "lora": lambda name: "lora_" in name,
    "lora-prior": lambda name: "lora_" in name,
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_meant_is_learnt(kind, tiny_pipe, photos):
    before, after = weights_of(tiny_pipe), weights_of(learn(KINDS[kind], tiny_pipe, photos, 2))
    for name, (values, _) in after.items():
        known = name.replace(".base_layer", "")
        same = known in before and torch.equal(values[: len(before[known][0])], before[known][0])
        if kind == "textual-inversion":
            assert same, name  # the new rows come after the old ones
        elif not LEARNT[kind](name):
            assert same, name
    changed = {name for name in before if name in after and not torch.equal(before[name][0], after[name][0])}
    if kind.startswith("dreambooth"):
        assert any(name.startswith("unet.mid_block") for name in changed)
    if kind == "dreambooth-text":
        assert any(name.startswith("text_encoder.") for name in changed)


def test_what_is_not_learnt_is_shared(tiny_pipe, photos):
    learnt = learn(KINDS["lora"], tiny_pipe, photos, 1)
    given = {weight.data_ptr() for weight in tiny_pipe.unet.parameters()}
    own = [name for name, weight in learnt.unet.named_parameters() if weight.data_ptr() not in given]
    assert own
    assert all("lora_" in name for name in own)
    assert learnt.vae is tiny_pipe.vae
    assert learnt.scheduler is not tiny_pipe.scheduler


def test_the_loss_falls(adversary, tiny_pipe, photos):
    """What the learnt pipeline predicts for noised training images comes nearer to the truth."""
    from privgen.attacks.adversaries.base import encode_pixels
    from privgen.attacks.adversaries.learning import Examples, _loss

    examples = Examples(encode_pixels(tiny_pipe, squares(photos, 32)), ((f"a photo of a {WORD}",),) * 3)

    @torch.no_grad()
    def loss(pipe):
        encode = lambda prompts: pipe.encode_prompt(prompts, "cpu", 1, False)[0]  # noqa: E731
        return float(_loss(pipe, examples, encode, 64, torch.Generator().manual_seed(3)))

    stages = dict(adversary.fit_at(tiny_pipe, photos, (0, 30), generator=torch.Generator().manual_seed(0)))
    assert loss(stages[30]) < loss(stages[0])


def test_stages_of_one_run_are_those_of_single_runs(adversary, tiny_pipe, photos):
    run = adversary.fit_at(tiny_pipe, photos, [2, 4], generator=torch.Generator().manual_seed(0))
    (two, early), (four, late) = run
    assert (two, four) == (2, 4)
    assert torch.equal(draw(early), draw(learn(adversary, tiny_pipe, photos, 2)))
    assert torch.equal(draw(late), draw(learn(adversary, tiny_pipe, photos, 4)))
    assert not torch.equal(draw(early), draw(late))


@pytest.mark.parametrize("kind", ["dreambooth", "lora"])
def test_without_a_step_nothing_changes(kind, tiny_pipe, photos):
    assert torch.equal(draw(learn(KINDS[kind], tiny_pipe, photos, 0)), draw(tiny_pipe))


def test_without_a_step_the_padding_of_the_first_prompt_is_the_old_one(tiny_pipe, photos):
    prompt = f"a photo of a {WORD}"
    learnt = learn(KINDS["prompt-embeds"], tiny_pipe, photos, 0)
    assert torch.equal(draw(learnt, prompt), draw(tiny_pipe, prompt))


def test_other_prompts_have_their_own_padding(tiny_pipe, photos):
    learnt = learn(KINDS["prompt-embeds"], tiny_pipe, photos, 3)
    assert torch.equal(draw(learnt, "a cat"), draw(tiny_pipe, "a cat"))
    embeds, plain = (pipe.encode_prompt(f"a {WORD}", "cpu", 1, False)[0][0] for pipe in (learnt, tiny_pipe))
    changed = (embeds != plain).any(1).nonzero().flatten().tolist()
    end = len(tiny_pipe.tokenizer(f"a {WORD}").input_ids)
    assert changed == list(range(end, end + 4))


def test_half_precision(adversary, tiny_pipe, photos):
    tiny_pipe.to(torch.bfloat16)
    learnt = learn(adversary, tiny_pipe, photos, 2)
    assert {weight.dtype for weight in (*learnt.unet.parameters(), *learnt.text_encoder.parameters())} == {
        torch.bfloat16
    }
    assert bool(draw(learnt).isfinite().all())


def load_again(kind, saved, folder, tiny):
    fresh = tiny.tiny_pipeline("sd15")
    if kind.startswith("dreambooth"):
        return StableDiffusionPipeline.from_pretrained(saved, safety_checker=None)
    if kind.startswith("lora"):
        fresh.load_lora_weights(folder)
    elif kind == "textual-inversion":
        fresh.load_textual_inversion(saved)
    else:
        return load_prompt_embeds(fresh, saved)
    return fresh


@pytest.mark.parametrize("kind", KINDS)
def test_saved_files_load_in_plain_diffusers(kind, tiny, photos, tmp_path):
    learnt = learn(KINDS[kind], tiny.tiny_pipeline("sd15"), photos, 2)
    saved = KINDS[kind].save(learnt, tmp_path)
    assert Path(saved).exists()
    torch.testing.assert_close(draw(load_again(kind, saved, tmp_path, tiny)), draw(learnt), atol=1e-5, rtol=0)


BAD_VALUES = [
    (lambda: PromptEmbeds(" "), "stand for a subject"),
    (lambda: PromptEmbeds("a{b"), "without braces"),
    (lambda: PromptEmbeds("x", prompts=("a photo",)), "does not name the subject"),
    (lambda: PromptEmbeds("x", lr=0), "learning rate"),
    (lambda: PromptEmbeds("x", lr=float("nan")), "learning rate"),
    (lambda: PromptEmbeds("x", batch_size=0), "batch size"),
    (lambda: PromptEmbeds("x", vectors=0), "at least 1"),
    (lambda: TextualInversion("x", vectors=0), "at least 1"),
    (lambda: DreamBoothLoRA("x", rank=0), "rank"),
    (lambda: Prior("a cat", 0), "at least one image"),
    (lambda: adversary_class("none"), "choose from textual-inversion"),
    (lambda: mixed([torch.zeros(3, 8, 8)], [], 1), "give more"),
    (lambda: mixed([torch.zeros(3, 8, 8)], [], 1.5), "from 0 to 1"),
]


@pytest.mark.parametrize(("call", "message"), BAD_VALUES, ids=range(len(BAD_VALUES)))
def test_bad_values(call, message):
    with pytest.raises(UsageError, match=message):
        call()


GREY = torch.full((3, 32, 32), 0.5)
BAD_CALLS = [
    ([], [1], "no images"),
    ([torch.zeros(1, 32, 32)], [1], "Image 0 has shape"),
    ([GREY, torch.zeros(3, 32, 32, dtype=torch.uint8)], [1], "Image 1 has shape"),
    ([GREY * 3], [1], "outside 0 to 1"),
    ([GREY * float("nan")], [1], "outside 0 to 1"),
    ([GREY], [], "in rising order"),
    ([GREY], [2, 1], "in rising order"),
    ([GREY], [2, 2], "in rising order"),
    ([GREY], [-1], "in rising order"),
]


@pytest.mark.parametrize(("images", "efforts", "message"), BAD_CALLS, ids=range(len(BAD_CALLS)))
def test_bad_calls(images, efforts, message, tiny, generator):
    with pytest.raises(UsageError, match=message):
        KINDS["prompt-embeds"].fit_at(tiny.tiny_pipeline(), images, efforts, generator=generator)


def test_pipelines_of_other_families_are_refused(tiny, photos, generator):
    pipe = tiny.tiny_pipeline()
    pipe.text_encoder_2 = pipe.text_encoder
    with pytest.raises(UsageError, match="several text encoders"):
        KINDS["lora"].fit(pipe, photos, 1, generator=generator)
    with pytest.raises(UsageError, match="has no unet"):
        KINDS["lora"].fit(object(), photos, 1, generator=generator)


def test_a_known_word_is_no_new_token(tiny, photos, generator):
    with pytest.raises(UsageError, match="knows 'a' already"):
        TextualInversion("a").fit(tiny.tiny_pipeline(), photos, 1, generator=generator)


def test_more_vectors_than_the_prompt_leaves_room_for(tiny, photos, generator):
    with pytest.raises(UsageError, match="room for 66 vectors"):
        PromptEmbeds("x", vectors=77, prompts=("a photo of {word}",)).fit(
            tiny.tiny_pipeline(), photos, 1, generator=generator
        )


def test_a_loss_that_is_not_finite(tiny, photos, generator):
    with pytest.raises(PrivgenError, match="lower the learning rate"):
        DreamBooth(WORD, lr=1e30).fit(tiny.tiny_pipeline(), photos, 4, generator=generator)


def test_prompt_embeds_of_something_else(tiny, photos, tmp_path):
    saved = KINDS["textual-inversion"].save(
        learn(KINDS["textual-inversion"], tiny.tiny_pipeline(), photos, 0), tmp_path
    )
    with pytest.raises(PrivgenError, match="does not hold prompt embeddings"):
        load_prompt_embeds(tiny.tiny_pipeline(), saved)
    with pytest.raises(PrivgenError, match="cannot be read"):
        load_prompt_embeds(tiny.tiny_pipeline(), tmp_path / "none.safetensors")


def test_mixed():
    protected, clean = [torch.full((3, 2, 2), i / 10) for i in range(4)], [torch.ones(3, 2, 2) * i for i in range(4)]
    assert mixed(protected, clean, 0) == protected
    assert [float(image[0, 0, 0]) for image in mixed(protected, clean, 0.5)] == pytest.approx([0, 0.1, 2, 3])
    assert [float(image[0, 0, 0]) for image in mixed(protected, clean[:2], 0.5)] == pytest.approx([0, 0.1, 0, 1])


def test_purified(photos):
    result = purified(photos, JPEG(30))
    assert [image.shape for image in result] == [image.shape for image in photos]
    assert all(torch.equal(image, JPEG(30)(photo)) for image, photo in zip(result, photos, strict=True))


def test_squares_are_centres():
    wide = torch.zeros(3, 10, 30)
    wide[:, :, 10:20] = 1
    torch.testing.assert_close(squares([wide], 10), torch.ones(1, 3, 10, 10))
    tall = torch.linspace(0, 1, 64).view(1, 64, 1).expand(3, 64, 16)
    (square,) = squares([tall], 32)
    assert square.shape == (3, 32, 32)
    torch.testing.assert_close(square.mean(), torch.tensor(0.5), atol=1e-3, rtol=0)


def test_scenes_are_described_by_the_colour_of_their_border():
    from privgen.attacks.adversaries.base import nearest_colour
    from privgen.data.scenes import COLOURS, Placed, SceneSpec
    from privgen.data.scenes import draw as draw_scene

    for i, colour in enumerate(COLOURS):
        scene = draw_scene(SceneSpec((Placed("fox", 0.5, 0.5, 0.75),), colour))
        assert nearest_colour(torch.from_numpy(scene.pixels)) == i


def test_registry():
    assert list(ADVERSARIES) == ["textual-inversion", "prompt-embeds", "dreambooth", "lora"]
    assert all(adversary_class(name).name == name for name in ADVERSARIES)


@pytest.mark.slow
def test_mini_learns_a_fox():
    from privgen.data.scenes import PREVIEW_SEED, sample_spec
    from privgen.data.scenes import draw as draw_scene
    from privgen.hub import load_pipeline
    from privgen.metrics.mobilenet import mobilenet_features, mobilenet_installed

    if not mobilenet_installed():
        pytest.skip("the features need privgen[perceptual]")

    pipe = load_pipeline("mini", device="cpu")
    specs = [sample_spec(PREVIEW_SEED + i, nouns=("fox",), count=1, textured=False) for i in range(6)]
    images = [torch.from_numpy(draw_scene(spec).pixels) for spec in specs]
    learnt = DreamBoothLoRA("robot").fit(pipe, images, 120, generator=torch.Generator().manual_seed(0))
    prompts = [f"a robot on a {colour} background" for colour in ("blue", "red", "green", "yellow")]
    subject = mobilenet_features(torch.stack(images)).mean(0)

    def similarity(drawn):
        return torch.cosine_similarity(mobilenet_features(drawn), subject[None]).mean()

    before, after = (similarity(generate(p, prompts, range(4), Sampling(12, 3.0))) for p in (pipe, learnt))
    assert after > before + 0.1
