"""Where images attend to words: the tokens of words, and what is recorded beside the model's own attention."""

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from diffusers.models.attention_processor import AttnProcessor

from privgen.data.scenes import PREVIEW_SEED, draw_scene
from privgen.errors import UsageError
from privgen.hub import load_pipeline
from privgen.models.family import attention_layers
from privgen.watermark.objects.attention import WordAttention, follow_edges, recording
from privgen.watermark.objects.words import prompts_of_call, word_places


def places(pipe, prompt, words, **call):
    return word_places(pipe, prompts_of_call(pipe, {"prompt": prompt, **call}), words)


@pytest.fixture
def pipe(tiny):
    return tiny.tiny_pipeline()


def test_a_word_is_all_its_tokens_wherever_it_comes(pipe):
    """The tiny tokenizer has one token a letter; the first token begins the prompt."""
    [[cat, dog]] = places(pipe, "a Cat, a cat and a dog", ["cat", "dog"])
    assert cat.tolist() == [2, 3, 4, 7, 8, 9]
    assert dog.tolist() == [14, 15, 16]
    [[both]] = places(pipe, "a black  cat", ["black cat"])
    assert both.tolist() == [2, 3, 4, 5, 6, 7, 8, 9]


def test_only_whole_words_count(pipe):
    for prompt in ("two cats", "a concatenation", "a dog", ""):
        with pytest.raises(UsageError, match=f'"{prompt}" has no word "cat"'):
            places(pipe, prompt, ["cat"])
    with pytest.raises(UsageError, match="after the last token that the model reads"):
        places(pipe, "x" * 76 + " cat", ["cat"])
    with pytest.raises(UsageError, match="pass prompt, or a mask"):
        places(pipe, None, ["cat"])


def test_several_prompts_and_images(pipe):
    found = places(pipe, ["a cat", "the cat"], ["cat"], num_images_per_prompt=2)
    assert [row[0].tolist() for row in found] == [[2, 3, 4]] * 2 + [[4, 5, 6]] * 2


def test_word_pieces_of_mini_are_found():
    """ "zebra" is no word of mini's: its tokenizer spells it."""
    pipe = load_pipeline("mini")
    [[zebra, cat]] = places(pipe, "a zebra and a cat", ["zebra", "cat"])
    ids = pipe.tokenizer("a zebra and a cat").input_ids
    assert pipe.tokenizer.decode([ids[place] for place in zebra.tolist()]).strip() == "zebra"
    assert pipe.tokenizer.decode([ids[place] for place in cat.tolist()]).strip() == "cat"
    assert len(zebra) > 1


class _Explicit(AttnProcessor):
    """Computes the probabilities itself, and keeps them."""

    kept: list

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        inner = attn.get_attention_scores

        def keep(query, key, mask=None):
            self.kept.append(inner(query, key, mask))
            return self.kept[-1]

        attn.get_attention_scores = keep
        try:
            return super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        finally:
            del attn.get_attention_scores


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_what_is_recorded_is_what_the_model_attends_to(pipe, guidance):
    """Against Diffusers' own explicit probabilities, of the last of two steps, of the prompted half."""
    prompt, words = ["a cat and a dog", "a dog and a cat"], ["cat", "dog"]
    settings = {"num_inference_steps": 2, "guidance_scale": guidance, "output_type": "latent"}
    found = places(pipe, prompt, words)
    processor = _Explicit()
    processor.kept = []
    for layer in attention_layers(pipe).values():
        layer.set_processor(processor)
    with recording(pipe, found) as attention:
        pipe(prompt, generator=torch.Generator().manual_seed(0), **settings)
    last = processor.kept[len(processor.kept) // 2 :]  # (batch * heads, places of the image, tokens)
    batch = 4 if guidance > 1 else 2
    mean = sum(one.unflatten(0, (batch, -1)).mean(1)[-2:] for one in last) / len(last)
    wanted = torch.stack([torch.stack([mean[i][:, at].sum(1) for at in row]) for i, row in enumerate(found)])
    wanted = (wanted / wanted.amax(2, keepdim=True)).unflatten(2, (8, 8))
    torch.testing.assert_close(attention.maps(), wanted, rtol=0, atol=1e-5)


def test_images_are_the_same_and_hooks_go_away_after_an_exception(pipe):
    def generate():
        seeded = torch.Generator().manual_seed(0)
        return pipe("a cat", num_inference_steps=3, output_type="pt", generator=seeded).images

    plain, processors = generate(), dict(pipe.unet.attn_processors)
    with recording(pipe, places(pipe, "a cat", ["cat"])):
        assert torch.equal(generate(), plain)
    with pytest.raises(ZeroDivisionError), recording(pipe, places(pipe, "a cat", ["cat"])):
        _ = 1 / 0
    assert pipe.unet.attn_processors == processors
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())


def test_each_call_starts_anew(pipe):
    def maps(prompts, attention):
        for prompt in prompts:
            pipe(prompt, num_inference_steps=3, output_type="pt", generator=torch.Generator().manual_seed(0))
        return attention.maps()

    found = places(pipe, "a cat", ["cat"])
    with recording(pipe, found) as attention:
        once = maps(["a cat"], attention)
    with recording(pipe, found) as attention:
        assert torch.equal(maps(["a dog", "a cat"], attention), once)


def test_without_a_late_step_nothing_is_known():
    with pytest.raises(UsageError, match="No late step"):
        WordAttention(1, 1).maps()


def test_maps_take_the_edges_of_the_image():
    """A coarse blob around a bright square becomes the square."""
    image = torch.zeros(1, 3, 64, 64)
    image[..., 20:44, 20:44] = 0.8
    image += 0.01 * torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    blob = torch.nn.functional.interpolate(image[:, :1], size=(8, 8), mode="area") / 0.8
    found = follow_edges(blob, image)[0, 0] > 0.5
    truth = image[0, 0] > 0.4
    assert float((found & truth).sum() / (found | truth).sum()) > 0.95


@pytest.mark.parametrize("count", [1, 2])
def test_masks_of_scenes_with_exact_masks(count):
    """mini redraws the last fifth of drawn scenes, whose masks are exact: .90, .89 and .86 for 1, 2 and 3 objects."""
    pipe = StableDiffusionImg2ImgPipeline(**load_pipeline("mini").components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    scenes = [draw_scene(PREVIEW_SEED + 7000 + i, count=count) for i in range(3)]
    pixels = torch.stack([torch.from_numpy(scene.pixels) for scene in scenes])
    found = [places(pipe, scene.caption, [item.noun for item in scene.spec.objects])[0] for scene in scenes]
    with recording(pipe, found) as attention:
        seeded = torch.Generator().manual_seed(0)
        images = pipe(
            [scene.caption for scene in scenes], image=pixels, strength=0.2, num_inference_steps=25,
            guidance_scale=3.0, generator=seeded, output_type="pt",
        ).images  # fmt: skip
    masks = attention.masks(images) > 0.5
    truth = torch.stack([torch.from_numpy(scene.masks) for scene in scenes]) > 0.5
    overlap = (masks & truth).sum((2, 3)) / (masks | truth).sum((2, 3))
    assert float(overlap.mean()) >= 0.75
    assert not bool((masks.sum(1) > 1).any()), "a pixel belongs to one object"
