import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest

from privgen.data.patterns import PATTERNS, TEXTURES, pattern, texture
from privgen.data.scenes import (
    COLOURS,
    HELDOUT_NOUNS,
    NOUNS,
    PATTERN_RMS,
    SIZE,
    TEXTURE_RMS,
    Placed,
    SceneSpec,
    draw,
    draw_scene,
    sample_spec,
)


PLAIN = SceneSpec((), "blue")


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_the_vocabulary():
    assert len(set(NOUNS)) == len(NOUNS) == 24
    assert len(set(HELDOUT_NOUNS)) >= 12
    assert not set(NOUNS) & set(HELDOUT_NOUNS)
    assert len(set(TEXTURES)) == len(TEXTURES)
    # Models read one token a word, so a word means one thing.
    words = [*NOUNS, *HELDOUT_NOUNS, *COLOURS, *TEXTURES]
    assert len(set(words)) == len(words)


def test_seeds_mean_the_same_scenes_everywhere():
    """Changing this changes what every shipped model was trained and measured on."""
    specs = [sample_spec(seed) for seed in (*range(200), 2_000_000_000)]
    assert specs[0].caption == "a fish and a hamburger on a red background"
    assert digest(repr(specs)) == "d0929cdf4be854bc"
    assert digest("\n".join(spec.caption for spec in specs)) == "e7cab63328e23158"


def test_the_same_seed_draws_the_same_pixels():
    one, other = draw_scene(5), draw_scene(5)
    assert np.array_equal(one.pixels, other.pixels)
    assert np.array_equal(one.masks, other.masks)
    assert not np.array_equal(one.pixels, draw_scene(6).pixels)
    assert one.pixels.dtype == one.masks.dtype == np.float32
    assert one.pixels.shape == (3, SIZE, SIZE)
    assert one.pixels.min() >= 0
    assert one.pixels.max() <= 1


def test_captions_follow_the_grammar():
    noun, colour = "|".join(NOUNS), "|".join(COLOURS)
    thing, word = f"(?:a|an) (?:{noun})", "|".join(TEXTURES)
    grammar = re.compile(
        rf"{thing}(?:(?:, {thing})* and {thing})? on (?:a|an) (?:{colour}) background"
        rf"(?: with (?:{'|'.join(PATTERNS)}))?(?:, (?:(?:{word}) )*?(?:(?:{word}) and )?(?:{word}) texture)?"
    )
    for seed in range(500):
        caption = sample_spec(seed).caption
        assert grammar.fullmatch(caption), caption
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption), caption


def test_a_caption_names_all_that_is_there():
    objects = tuple(Placed(noun, 0.5, 0.5, 0.4) for noun in ("octopus", "cat", "elephant"))
    spec = SceneSpec(objects, "orange", "fine dots", ("linen", "silk"))
    assert spec.caption == (
        "an octopus, a cat and an elephant on an orange background with fine dots, linen and silk texture"
    )
    assert SceneSpec(objects[:1], "red").caption == "an octopus on a red background"


def test_shares_of_what_is_sampled():
    specs = [sample_spec(seed) for seed in range(2000)]
    counts = np.bincount([len(spec.objects) for spec in specs], minlength=4) / len(specs)
    assert counts == pytest.approx([0, 0.45, 0.45, 0.1], abs=0.04)
    assert np.mean([spec.pattern is not None for spec in specs]) == pytest.approx(0.35, abs=0.04)
    assert {placed.noun for spec in specs for placed in spec.objects} == set(NOUNS)
    assert {spec.colour for spec in specs} == set(COLOURS)
    assert {word for spec in specs for word in spec.textures} == set(TEXTURES)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_options(count):
    for seed in range(30):
        spec = sample_spec(seed, count=count, patterned=True, textured=False, nouns=HELDOUT_NOUNS)
        assert len(spec.objects) == len({placed.noun for placed in spec.objects}) == count
        assert {placed.noun for placed in spec.objects} <= set(HELDOUT_NOUNS)
        assert spec.pattern in PATTERNS
        assert spec.textures == ()
        assert sample_spec(seed, textured=True).textures
        assert sample_spec(seed, patterned=False).pattern is None
        assert len(set(spec.textures)) == len(spec.textures)


@pytest.mark.parametrize("count", [0, 4, -1])
def test_other_counts_are_refused(count):
    with pytest.raises(ValueError, match=f"expected count 1, 2 or 3, got {count}"):
        sample_spec(0, count=count)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError):
        draw_scene(0, colour="red")


# Pixels


@pytest.mark.parametrize("seed", range(12))
def test_masks_composite_the_picture(seed):
    """Picture = background where no object is + what each mask shows of its object."""
    scene = draw_scene(seed, textured=False)
    background = draw(replace(scene.spec, objects=())).pixels
    outside = scene.masks.sum(0) == 0
    assert np.array_equal(scene.pixels[:, outside], background[:, outside])
    expected = background.copy()
    for i, placed in enumerate(scene.spec.objects):
        alone = draw(replace(scene.spec, objects=(placed,)))
        alpha = alone.masks[0]
        # An object alone is background * (1 - alpha) + premultiplied colour.
        expected = expected * (1 - alpha) + (alone.pixels - background * (1 - alpha))
        assert np.all(scene.masks[i] <= alpha)
    assert np.allclose(scene.pixels, expected.clip(0, 1), atol=2e-3)


def test_masks_of_overlapping_objects():
    """What lies in front takes its share from the masks behind it, and all shares sum to at most one."""
    objects = (Placed("car", 0.45, 0.5, 0.6), Placed("cat", 0.55, 0.5, 0.6))
    masks = draw(SceneSpec(objects, "gray")).masks
    car, cat = (draw(SceneSpec((placed,), "gray")).masks[0] for placed in objects)
    assert np.array_equal(masks[1], cat)
    assert np.allclose(masks[0], car * (1 - cat))
    assert masks.sum(0).max() <= 1 + 1e-6
    assert (car * cat).sum() > 100


def test_objects_may_reach_over_the_edge():
    scene = draw(SceneSpec((Placed("cat", 0.0, 1.0, 0.5),), "pink"), size=64)
    assert scene.masks[0][40:, :12].max() > 0.9
    assert scene.masks[0][:30, 30:].max() == 0


def test_masks_hold_the_objects():
    for seed in range(20):
        scene = draw_scene(seed)
        for placed, mask in zip(scene.spec.objects, scene.masks, strict=True):
            y, x = np.mgrid[:128, :128] / 128
            assert (mask * x).sum() / mask.sum() == pytest.approx(placed.x, abs=0.08)
            assert (mask * y).sum() / mask.sum() == pytest.approx(placed.y, abs=0.08)
            assert 0.15 < mask.sum() / (128 * placed.side) ** 2 < 0.95


@pytest.mark.parametrize("size", [32, 128, 200])
def test_sizes(size):
    scene = draw_scene(3, size=size)
    assert scene.pixels.shape == (3, size, size)
    assert scene.masks.shape == (len(scene.spec.objects), size, size)


def test_colours_are_what_they_are_called():
    for name, rgb in COLOURS.items():
        assert draw(SceneSpec((), name)).pixels.mean((1, 2)) == pytest.approx(np.array(rgb) / 255, abs=1e-3)


# Patterns and textures


def test_patterns_have_unit_contrast():
    for name in PATTERNS:
        field = pattern(name, 96)
        assert field.mean() == pytest.approx(0, abs=1e-5)
        assert (field**2).mean() == pytest.approx(1, abs=1e-4)
    difference = draw(replace(PLAIN, pattern="fine waves")).pixels - draw(PLAIN).pixels
    assert np.sqrt((difference**2).mean()) == pytest.approx(PATTERN_RMS, rel=0.02)


@pytest.mark.parametrize("size", [64, 128])
def test_textures_are_orthogonal_and_of_unit_contrast(size):
    fields = np.stack([texture(name, size) for name in TEXTURES]).reshape(len(TEXTURES), -1).astype(np.float64)
    gram = fields @ fields.T / size**2
    assert np.allclose(gram, np.eye(len(TEXTURES)), atol=1e-4)
    assert np.allclose(fields.mean(1), 0, atol=1e-5)


def test_textures_are_faint_grey_and_everywhere():
    difference = draw(replace(PLAIN, textures=("linen",))).pixels - draw(PLAIN).pixels
    assert np.allclose(difference, TEXTURE_RMS * texture("linen", SIZE)[None], atol=1e-5)


def test_many_textures_stay_faint():
    difference = draw(replace(PLAIN, textures=TEXTURES[:8])).pixels - draw(PLAIN).pixels
    assert np.sqrt((difference**2).mean()) <= 8 / 255 * 1.01


def test_unknown_names():
    with pytest.raises(ValueError, match=r"expected one of fine horizontal stripes, .*, got 'stars'"):
        pattern("stars", 64)
    with pytest.raises(ValueError, match="expected a texture such as 'linen', got 'stars'"):
        texture("stars", 64)
