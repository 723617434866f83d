"""Attacks as values: names, representations, composition, errors."""

import dataclasses
import re

import pytest
import torch

from privgen.attacks import (
    JPEG,
    All,
    AspectCrop,
    Attack,
    Blur,
    Choice,
    Crop,
    Noise,
    RandomDistortion,
    Rotation,
    Sequence,
    attack_class,
    get_attack,
    list_attacks,
    pairs_of,
    parameters_of,
    parse_attack,
    register,
)


REPRESENTATIONS = [
    (JPEG(), "JPEG(strength=50)", "jpeg_50"),
    (JPEG(strength=75.0), "JPEG(strength=75)", "jpeg_75"),
    (JPEG(strength=5, mode="approximate"), "JPEG(strength=5, mode='approximate')", "jpeg_5_mode_approximate"),
    (get_attack("crop", strength=0.5), "Crop(strength=0.5)", "crop_0_5"),
    (Crop(place="centre"), "Crop(strength=0.75, place='centre')", "crop_0_75_place_centre"),
    (get_attack("rotation", strength=10), "Rotation(strength=10)", "rotation_10"),
    (Rotation(strength=-2.5), "Rotation(strength=-2.5)", "rotation_minus2_5"),
    (get_attack("brightness"), "Brightness(strength=1.5)", "brightness_1_5"),
    (Blur(strength=4), "Blur(strength=4)", "blur_4"),
    (Blur(strength=1, reference=None), "Blur(strength=1, reference=None)", "blur_1_px"),
    (JPEG().repeat(3), f"Sequence({', '.join(['JPEG(strength=50)'] * 3)})", "jpeg_50_x3"),
    (Crop(0.1, size="own"), "Crop(strength=0.1, size='own')", "crop_0_1_size_own"),
    (AspectCrop(ratio="16:9"), "AspectCrop(strength=1, ratio='16:9')", "aspect_crop_1_ratio_16_9"),
    (Sequence(JPEG(), Blur()), "Sequence(JPEG(strength=50), Blur(strength=10))", "jpeg_50_then_blur_10"),
]


@pytest.mark.parametrize(("attack", "text", "label"), REPRESENTATIONS, ids=lambda value: str(value)[:40])
def test_repr_and_label(attack, text, label):
    assert repr(attack) == text
    assert attack.label == label
    assert eval(text) == attack or isinstance(attack, Sequence)


# What eval() above needs by the names that it finds.
Brightness = attack_class("brightness")


def test_names_that_others_rely_on():
    assert {known.name for known in list_attacks()} >= {
        *("rotation", "crop", "erase", "geometric"),
        *("brightness", "contrast", "saturation", "hue", "gamma", "sharpness", "photometric"),
        *("blur", "noise", "jpeg", "webp", "degradation", "all"),
        *("border", "pad", "collage", "aspect_crop", "flip", "scale", "micro_warp", "grey"),
        *("screenshot", "caption", "whatsapp", "telegram", "instagram", "wechat", "upload_chain"),
        *("median", "non_local_means", "total_variation", "bilateral_guided"),
    }
    assert [known.kind for known in list_attacks()] == sorted(
        (known.kind for known in list_attacks()), key="DPAM".index
    )
    assert all(known.kind == "P" for known in list_attacks("P"))


def test_values_are_frozen_comparable_and_hashable():
    assert JPEG(strength=50) == JPEG() != JPEG(strength=51)
    assert len({JPEG(), JPEG(strength=50.0), get_attack("jpeg")}) == 1
    assert len({JPEG().repeat(2), Sequence(JPEG(), JPEG())}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        JPEG().strength = 3
    assert JPEG(30) == JPEG(strength=30)
    with pytest.raises(TypeError, match="positional"):
        JPEG(50, "4:4:4")


def test_strengths_between_identity_and_end():
    assert Rotation.at(0).is_identity
    assert Rotation.at(1) == Rotation(strength=45)
    assert JPEG.at(0.5) == JPEG(strength=55)
    assert JPEG(subsampling="4:4:4").with_strength(33.4) == JPEG(strength=33, subsampling="4:4:4")
    assert Crop.at(0.5) == Crop(strength=0.75)


def test_sequence_is_one_after_the_other(pictures, seeded):
    images = pictures(2, 32, 32)
    shared = seeded(0, 1)
    expected = Blur()(Noise()(images, generator=shared), generator=shared)
    assert torch.equal(Sequence(Noise(), Blur())(images, generator=seeded(0, 1)), expected)
    nested = Sequence(Sequence(Noise(), Blur()), JPEG())
    assert nested.attacks == (Noise(), Blur(), JPEG())


def test_repeat_draws_anew(pictures, seeded):
    images = pictures(1, 64, 64) * 0.2 + 0.4
    once, twice = ((Noise().repeat(n)(images, generator=seeded(0)) - images).std().item() for n in (1, 2))
    assert twice == pytest.approx(once * 2**0.5, rel=0.05)


def test_all_is_its_parts_in_order(pictures, seeded):
    images = pictures(2, 32, 32)
    parts = Sequence(*(member.at(0.3) for member in All.members))
    assert torch.equal(All(strength=0.3)(images, generator=seeded(0)), parts(images, generator=seeded(0)))
    assert [member.name for member in All.members] == [
        *("rotation", "crop", "erase", "brightness", "contrast", "blur", "noise", "jpeg")
    ]


def test_pairs_are_every_first_with_every_second():
    pairs = pairs_of(iter([Crop(0.5), Rotation(10)]), iter([JPEG(50), Noise(0.1)]))
    labels = ["crop_0_5_then_jpeg_50", "crop_0_5_then_noise_0_1", "rotation_10_then_jpeg_50"]
    assert [pair.label for pair in pairs] == [*labels, "rotation_10_then_noise_0_1"]


def test_a_sequence_keeps_the_size_if_all_its_attacks_do():
    assert Sequence(JPEG(), Crop()).keeps_size
    assert not Sequence(JPEG(), Crop(size="own"), JPEG()).keeps_size


@pytest.mark.parametrize(
    ("text", "attack"),
    [
        ("jpeg=20 then blur=1,reference=none", Sequence(JPEG(20), Blur(1, reference=None))),
        ("aspect_crop,ratio=16:9", AspectCrop(ratio="16:9")),
        ("jpeg", JPEG()),
        ("jpeg=50", JPEG(strength=50)),
        ("jpeg,subsampling=4:4:4", JPEG(subsampling="4:4:4")),
        (" crop = 0.5 , place = centre ", Crop(strength=0.5, place="centre")),
        ("blur=1,reference=none", Blur(strength=1, reference=None)),
        ("rotation=-1e1", Rotation(strength=-10)),
    ],
)
def test_parse(text, attack):
    assert parse_attack(text) == attack


def test_collected_images_go_to_those_that_take_them():
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    chain = parse_attack("averaging_removal then jpeg", marked=images)
    assert isinstance(chain, Sequence)
    assert "marked=" in repr(chain.attacks[0])
    assert chain.attacks[1] == JPEG()
    with pytest.raises(ValueError, match="no attack in 'jpeg then noise' takes marked"):
        parse_attack("jpeg then noise", marked=images)


def test_parameters_and_defaults():
    assert parameters_of(JPEG) == {"strength": 50, "subsampling": "4:2:0", "mode": "codec"}
    for known in list_attacks():
        assert get_attack(known.name, **parameters_of(known)) == known(), known.name
    purifications = {known.name: parameters_of(known) for known in list_attacks("P")}
    assert {"diffpure", "gridpure", "impress", "regeneration", "rinsing", "vae"} <= set(purifications)
    assert purifications["rinsing"]["t"] == 60
    assert all(next(iter(parameters)) == "strength" for parameters in purifications.values())


@pytest.mark.parametrize("known", list_attacks(), ids=lambda known: known.name)
def test_the_first_line_of_the_docstring_says_what_happens_to_the_image(known):
    """`privgen attack list` and the documentation show it."""
    first, _, rest = known.__doc__.partition("\n")
    assert re.match(r"[A-Z][a-z]+s\b.*\.$", first), first
    assert re.search(r"strength: .*\d", rest), "the docstring gives no range of the strength"


GOOD = torch.zeros(2, 3, 8, 8)

ERRORS = [
    (lambda: get_attack("jpg"), "no attack is called 'jpg'; did you mean 'jpeg'?"),
    (lambda: get_attack("xxxxxx"), "no attack is called 'xxxxxx'; known are .*rotation"),
    (lambda: get_attack("jpeg", quality=3), "jpeg takes strength, subsampling, mode; got quality"),
    (lambda: JPEG(strength=0), r"jpeg: expected a strength in \[1, 100\] quality, got 0"),
    (lambda: JPEG(strength=50.5), "jpeg: expected a whole number as strength, got 50.5"),
    (lambda: JPEG(strength=float("nan")), r"expected a strength in \[1, 100\] quality, got nan"),
    (lambda: JPEG(strength="50"), "jpeg: expected a number as strength, got '50'"),
    (lambda: JPEG(strength=True), "expected a number as strength, got True"),
    (lambda: JPEG(mode="other"), "expected mode 'codec' or 'approximate', got 'other'"),
    (lambda: JPEG(subsampling="4:1:1"), "expected subsampling '4:2:0' or '4:4:4', got '4:1:1'"),
    (lambda: Crop(strength=0), r"crop: expected a strength in \[0.01, 1\]"),
    (lambda: Crop(place="top"), "expected place 'random' or 'centre', got 'top'"),
    (lambda: Crop(size="big"), "crop: expected size 'image' or 'own', got 'big'"),
    (lambda: get_attack("flip", axis="x"), "flip: expected axis 'horizontal' or 'vertical', got 'x'"),
    (lambda: get_attack("flip", strength=0.5), "flip: expected a whole number as strength, got 0.5"),
    (lambda: get_attack("scale", strength=0), r"scale: expected a strength in \[0.01, 8\] factor, got 0"),
    (lambda: get_attack("grey", strength=2), r"grey: expected a strength in \[0, 1\]"),
    (lambda: get_attack("border", strength=-1), r"border: expected a strength in \[0, 2\] of the shorter side"),
    (lambda: get_attack("border", colour="ultraviolet"), "border: expected a colour such as .*, got 'ultraviolet'"),
    (lambda: get_attack("pad", colour=3), "pad: expected a colour such as .*, got 3"),
    (lambda: get_attack("pad", ratio="16"), "pad: expected an aspect ratio such as '4:5', .*, got '16'"),
    (lambda: get_attack("pad", place="top"), "pad: expected place 'random' or 'centre', got 'top'"),
    (lambda: get_attack("aspect_crop", ratio="1:0"), "aspect_crop: expected an aspect ratio .*, got '1:0'"),
    (lambda: get_attack("aspect_crop", ratio="1:-2"), "aspect_crop: expected an aspect ratio .*, got '1:-2'"),
    (lambda: get_attack("aspect_crop", ratio=1), "aspect_crop: expected an aspect ratio .*, got 1"),
    (lambda: get_attack("aspect_crop", strength=1.5), r"expected a strength in \[0, 1\] of the way to the ratio"),
    (lambda: get_attack("aspect_crop", place="top"), "aspect_crop: expected place 'random' or 'centre', got 'top'"),
    (lambda: get_attack("collage", strength=1.5), "collage: expected a whole number as strength, got 1.5"),
    (lambda: get_attack("collage", others="cats"), "expected others 'photographs' or 'colours', got 'cats'"),
    (lambda: get_attack("collage", gap=-1), r"collage: expected a gap in \[0, 1\], got -1"),
    (lambda: get_attack("collage", colour=""), "collage: expected a colour such as .*, got ''"),
    (lambda: get_attack("micro_warp", strength=21), r"micro_warp: expected a strength in \[0, 20\] px at 512"),
    (lambda: get_attack("micro_warp", cells=0), r"expected a whole number of cells in \[1, 64\], got 0"),
    (lambda: get_attack("micro_warp", reference=0), "micro_warp: expected a reference >= 1 or None, got 0"),
    (lambda: get_attack("screenshot", strength=5), r"screenshot: expected a strength in \[0, 4\] times the usual"),
    (lambda: get_attack("caption", place="left"), "caption: expected place 'bottom' or 'top', got 'left'"),
    (lambda: get_attack("caption", quality=0), r"caption: expected a whole number in \[1, 100\] as quality, got 0"),
    (lambda: get_attack("whatsapp", strength=0.5), "whatsapp: expected a whole number as strength, got 0.5"),
    (lambda: get_attack("whatsapp", kilobytes=0), "whatsapp: expected kilobytes > 0 or None, got 0"),
    (lambda: get_attack("telegram", side=0), "telegram: expected a side >= 1, got 0"),
    (lambda: get_attack("wechat", quality=101), r"wechat: expected a whole number in \[1, 100\] as quality, got 101"),
    (lambda: get_attack("upload_chain", scale=3), r"upload_chain: expected a scale in \[0.1, 2\], got 3"),
    (lambda: get_attack("upload_chain", quality=50.5), "expected a whole number .* as quality, got 50.5"),
    (lambda: parse_attack("whatsapp,side=big"), "whatsapp: a value in 'whatsapp,side=big' is of the wrong kind"),
    (lambda: parse_attack("jpeg then jpg"), "no attack is called 'jpg'; did you mean 'jpeg'?"),
    (lambda: Choice(Crop(size="own"), 0.5, 1, 1), "expected an attack that keeps the size of images, got Crop"),
    (lambda: Blur(reference=0), "expected a reference >= 1 or None, got 0"),
    (lambda: get_attack("erase", value=2), r"expected a value in \[0, 1\], got 2"),
    (lambda: get_attack("total_variation", steps=0), "expected steps >= 1, got 0"),
    (lambda: get_attack("non_local_means", search=0), "expected patch >= 0 and search >= 1, got 2 and 0"),
    (lambda: parse_attack("jpeg=abc"), "expected a number as strength, got 'abc'"),
    (lambda: parse_attack("jpeg="), "expected NAME=STRENGTH or NAME=STRENGTH,KEY=VALUE, got 'jpeg='"),
    (lambda: parse_attack("jpeg=5,strength=6"), "expected NAME=STRENGTH"),
    (lambda: parse_attack("blur=1,reference=big"), "blur: a value in .* is of the wrong kind"),
    (lambda: JPEG().repeat(0), "expected times >= 1, got 0"),
    (lambda: Sequence(), r"expected attacks, at least one, got \(\)"),
    (lambda: Sequence("jpeg"), "expected attacks, at least one, got"),
    (lambda: JPEG()(GOOD[0, 0]), r"expected a tensor \(1, H, W\), \(3, H, W\) or \(4, H, W\), got shape \(8, 8\)"),
    (lambda: JPEG()(GOOD.expand(5, 2, 3, 8, 8)), r"got shape \(5, 2, 3, 8, 8\)"),
    (lambda: JPEG()([]), "expected at least one image, got none"),
    (lambda: JPEG()(GOOD[:0]), r"got \(0, 3, 8, 8\)"),
    (lambda: JPEG()([GOOD[0]] * 3, generator=[torch.Generator()]), "one for each of 3 images, got 1"),
    (lambda: JPEG()(GOOD + 2), r"expected images in \[0, 1\], got values in \[2, 2\]"),
    (lambda: JPEG()(GOOD - 1), r"got values in \[-1, -1\]"),
    (lambda: JPEG()(GOOD * float("nan")), r"got values in \[nan, nan\]"),
    (lambda: JPEG()(GOOD, generator=[torch.Generator()]), "expected one generator or one for each of 2 images, got 1"),
    (lambda: get_attack("webp")(torch.zeros(1, 3, 1, 16384)), "WebP holds at most 16383 pixels a side, got 16384 x 1"),
    (lambda: Choice(JPEG(), 0, 50, 1), "expected a strength"),
    (lambda: Choice(JPEG(), 10, 50, 1.5), r"expected a probability in \[0, 1\], got 1.5"),
    (lambda: RandomDistortion((Choice(JPEG(), 10, 50, 0.6),) * 2), "sum to at most 1, got 1.2"),
    (lambda: RandomDistortion().scaled(2), r"expected a scale in \[0, 1\], got 2"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=range(len(ERRORS)))
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rounding_beyond_the_range_is_clamped():
    images = torch.tensor([-1e-4, 1 + 1e-4, 0.5]).reshape(1, 3, 1, 1)
    out = get_attack("brightness", strength=1)(images)
    assert torch.equal(out.flatten(), torch.tensor([0, 1, 0.5]))


def declare(**attributes):
    base = {"name": "t", "kind": "D", "unit": "px", "sweep": (1, 2), "identity": 0, "bounds": (0, 3)}
    return type("Declared", (Attack,), {key: v for key, v in {**base, **attributes}.items() if v is not None})


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"unit": None, "sweep": None}, "Declared does not state unit, sweep"),
        ({"name": "JPEG 2"}, "expected a name of lower-case letters, digits and underscores, got 'JPEG 2'"),
        ({"name": "jpeg"}, "the name 'jpeg' is taken by JPEG"),
        ({"sweep": (1, 4)}, "t: sweep or identity lies outside the bounds"),
    ],
)
def test_register_refuses(attributes, message):
    names = [known.name for known in list_attacks()]
    with pytest.raises(ValueError, match=re.escape(message)):
        register(declare(**attributes))
    assert [known.name for known in list_attacks()] == names
