"""Objects of generated images: each with its own key, where the image attends to its word; nothing outside."""

import pytest
import torch
from PIL import Image

from privgen import Key, Watermark, load_pipeline
from privgen.errors import UsageError
from privgen.models.autoencoder import load_autoencoder
from privgen.pipelines.pipeline_stable_diffusion_watermark import StableDiffusionWatermarkPipeline
from privgen.watermark.key import Secret
from privgen.watermark.objects.attention import recording
from privgen.watermark.objects.read import locate
from privgen.watermark.objects.words import prompts_of_call, word_places


ALICE, BOB, CAROL = (Key(name, Secret(bytes([n]) * 32)) for n, name in enumerate(("alice", "bob", "carol")))
MARK = Watermark.from_pretrained("mini")
PROMPT = "a cat and a pineapple on a blue background"
OWNERS = {"cat": ALICE, "pineapple": BOB}


def generate(pipe, prompt=PROMPT, steps=4, **options):
    seeded = torch.Generator().manual_seed(1)
    call = {"num_inference_steps": steps, "guidance_scale": 3.0, "output_type": "pt", "generator": seeded, **options}
    return pipe(prompt, **call)


def grown(masks, pixels=4):
    inside = torch.as_tensor(masks).float().reshape(-1, 1, *masks.shape[-2:])
    return torch.nn.functional.max_pool2d(inside, 2 * pixels + 1, 1, pixels).amax((0, 1)) > 0


@pytest.fixture(scope="module")
def mini():
    pipe = load_pipeline("mini", device="cpu", dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def plain(mini):
    return generate(mini).images


def test_two_owners_in_one_image(mini, plain):
    with MARK.on(mini, objects=OWNERS) as pipe:
        output = generate(pipe)
    cat, pineapple = output.objects[0]
    assert [(cat.name, cat.key), (pineapple.name, pineapple.key)] == [("cat", "alice"), ("pineapple", "bob")]
    assert not bool((cat.mask * pineapple.mask).any())
    outside = ~grown(torch.stack([cat.mask, pineapple.mask]))
    assert torch.equal(output.images[0][:, outside], plain[0][:, outside])
    assert 0.3 < float(outside.float().mean()) < 0.95
    found = {place.key: place for place in locate(output.images[0], [ALICE, BOB, CAROL])}
    assert [name for name, place in found.items() if place.detected] == ["alice", "bob"]
    assert found["alice"].box[0] < found["bob"].box[0], "the first object stands on the left"
    assert torch.equal(generate(mini).images, plain), "the pipeline is as before"


def test_an_object_is_marked_in_latents(mini, plain):
    """Marking asks the denoiser and the decoder too, and the image outside stays what it was."""
    with MARK.on(mini, objects={"cat": ALICE}, carrier="latent", psnr=26.0):
        output = generate(mini)
    [cat] = output.objects[0]
    outside = ~grown(cat.mask[None])
    assert torch.equal(output.images[0][:, outside], plain[0][:, outside])
    assert cat.object_psnr == pytest.approx(26, abs=0.1)
    found = MARK.detect(output.images[0], [BOB, ALICE], locate=True, carrier="latent", fpr=1e-3)
    assert [region.key for region in found.regions] == ["alice"]
    assert not MARK.detect(output.images[0], [BOB, ALICE], locate=True, carrier="tile").detected
    assert torch.equal(generate(mini).images, plain), "the pipeline is as before"


def test_a_token_needs_a_late_step(mini, plain):
    with MARK.on(mini, objects={"cat": ALICE}, carrier="token"), pytest.raises(UsageError, match="use more steps"):
        generate(mini)
    assert torch.equal(generate(mini).images, plain), "the pipeline is as before"


def test_masks_override_attention(mini, plain):
    """The word need not be in the prompt then."""
    mask = Image.new("L", (128, 128))
    mask.paste(255, (16, 16, 72, 72))
    with MARK.on(mini, objects={"corner": ALICE}, masks={"corner": mask}):
        output = generate(mini)
    changed = (output.images[0] != plain[0]).any(0)
    assert bool(changed[20:68, 20:68].any())
    changed[14:74, 14:74] = False
    assert not bool(changed.any())
    assert output.objects[0][0].area == pytest.approx(56**2 / 128**2, rel=0.05)


def test_a_key_for_the_rest(mini, plain):
    with MARK.on(mini, CAROL, objects=OWNERS):
        output = generate(mini)
    outside = ~grown(torch.stack([item.mask for item in output.objects[0]]))
    assert not torch.equal(output.images[0][:, outside], plain[0][:, outside])
    assert MARK.detect(output.images[0], CAROL, carrier="tile").detected


def test_the_pipeline_that_marks_does_the_same(mini):
    own = StableDiffusionWatermarkPipeline(**mini.components, requires_safety_checker=False)
    own.set_progress_bar_config(disable=True)
    output = generate(own, objects=OWNERS)
    with MARK.on(mini, objects=OWNERS):
        assert torch.equal(generate(mini).images, output.images)
    assert output.carrier == "tile"
    assert [item.name for item in output.objects[0]] == ["cat", "pineapple"]
    assert generate(own).objects is None


def test_what_fails_leaves_the_pipeline_as_it_was(mini, plain):
    own = mini.__class__
    with pytest.raises(UsageError, match='no word "dog"'), MARK.on(mini, objects={"dog": ALICE}):
        generate(mini)
    with pytest.raises(UsageError, match="leave output_type"), MARK.on(mini, objects=OWNERS):
        generate(mini, output_type="latent")

    def fail(*args):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), MARK.on(mini, objects=OWNERS):
        generate(mini, callback_on_step_end=fail)
    assert mini.__class__ is own
    assert "decode" not in mini.vae.__dict__
    assert not any(module._forward_pre_hooks for module in mini.unet.modules())
    assert torch.equal(generate(mini).images, plain)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"objects": {}}, "at least one object"),
        ({"objects": OWNERS, "carrier": "tile+latent"}, "carriers tile, latent, token"),
        ({"objects": OWNERS, "key": [ALICE]}, "the one key for all that is outside"),
        ({"objects": OWNERS, "masks": {"dog": torch.ones(4, 4)}}, 'mask for "dog", but no key'),
        ({"masks": {"cat": torch.ones(4, 4)}}, "say with objects which key owns which"),
    ],
)
def test_wrong_calls(mini, options, match):
    with pytest.raises(UsageError, match=match), MARK.on(mini, **options):
        pass


FAMILIES = {"sd15": "taesd", "sdxl": "taesdxl", "sd3": "taesd3", "flux": "taef1"}


def generate_tiny(pipe, prompt):
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "pt"}
    if hasattr(pipe, "transformer"):
        settings["max_sequence_length"] = 16
    return pipe(prompt, height=128, width=192, generator=torch.Generator().manual_seed(0), **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_objects_in_every_family(family, tiny, real_autoencoder):
    """Random networks attend anywhere, so what is tested is that maps have the image's shape and follow the words."""
    pipe = tiny.tiny_of_family(family, load_autoencoder(real_autoencoder(FAMILIES[family])))
    prompt = ["a cat", "my dog"]
    plain = generate_tiny(pipe, prompt)
    places = word_places(pipe, prompts_of_call(pipe, {"prompt": ["a cat a", "a cat a"]}), ["a", "cat"])
    with recording(pipe, places) as attention:
        assert torch.equal(generate_tiny(pipe, prompt).images, plain.images)
    maps = attention.maps()
    assert maps.shape[:2] == (2, 2)
    assert maps.shape[3] == 1.5 * maps.shape[2], "of the image's shape, also if latents are packed"
    assert not torch.equal(maps[:, 0], maps[:, 1])
    mask = torch.zeros(128, 192)
    mask[:, :96] = 1
    with MARK.on(pipe, objects={"left": ALICE}, masks={"left": mask}):
        marked = generate_tiny(pipe, prompt)
    assert torch.equal(marked.images[..., 100:], plain.images[..., 100:])
    assert not torch.equal(marked.images[..., :96], plain.images[..., :96])
    with MARK.on(pipe, objects={"a": ALICE}), pytest.raises(UsageError, match='"my dog" has no word "a"'):
        generate_tiny(pipe, prompt)
    with MARK.on(pipe, objects={"a": BOB}):
        output = generate_tiny(pipe, "a cat")
    [item] = output.objects[0]
    assert item.mask.shape == (128, 192)
    assert item.area > 0
