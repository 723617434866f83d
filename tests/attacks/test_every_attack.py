"""What holds for each registered attack on tensors, whatever it does."""

import dataclasses

import pytest
import torch

from privgen.attacks import Combination, ModelAttack, RandomDistortion, get_attack, list_attacks


# Attacks with a model have tests of their own, with tiny models.
CLASSICAL = [known for known in list_attacks() if known.kind in "DP" and not issubclass(known, ModelAttack)]
SLOW = ("bilateral_guided", "non_local_means", "total_variation")
# Approximate JPEG has no class of its own; the slow filters are made short.
MIDDLE = [known() for known in CLASSICAL if known.name not in SLOW]
MIDDLE += [
    get_attack("jpeg", mode="approximate"),
    get_attack("jpeg", strength=30, subsampling="4:4:4"),
    get_attack("crop", strength=0.5, place="centre"),
    get_attack("blur", strength=1, reference=None),
    get_attack("bilateral_guided", strength=2),
    get_attack("non_local_means", search=2),
    get_attack("total_variation", steps=10),
    get_attack("erase").repeat(2),
    get_attack("crop", strength=0.5, size="own"),
    get_attack("scale", strength=1.5),
    get_attack("pad", strength=0.5, ratio="9:16", place="random", colour="#804020"),
    get_attack("aspect_crop", ratio="16:9", place="random"),
    get_attack("collage", strength=3, others="colours", gap=0),
    get_attack("flip", axis="vertical"),
    get_attack("caption", strength=0.4, place="top", text=""),
    get_attack("whatsapp", strength=2, side=30, kilobytes=1),
    get_attack("wechat", side=24),
    RandomDistortion(per_sample=True),
]
WITH_CODEC = ("jpeg", "webp", "degradation", "all", "screenshot", "caption", "upload_chain")
WITH_CODEC += ("whatsapp", "telegram", "instagram", "wechat")


@pytest.mark.parametrize("attack", MIDDLE, ids=repr)
def test_shape_type_and_range_are_kept(attack, pictures, seeded):
    for size in ((1, 64, 64), (3, 37, 50), (2, 50, 31)):
        images = pictures(*size)
        before = images.clone()
        out = attack(images, generator=seeded(*range(size[0])))
        assert out.shape[:2] == images.shape[:2]
        assert out.shape == images.shape or not attack.keeps_size
        assert out.dtype == images.dtype
        assert 0 <= out.min() <= out.max() <= 1
        assert torch.equal(images, before), "the input was changed in place"


def test_which_attacks_change_the_size(pictures):
    changing = {known.name for known in CLASSICAL if not known().keeps_size}
    assert changing == {
        *("aspect_crop", "border", "collage", "pad", "scale"),
        *("screenshot", "whatsapp", "telegram", "instagram", "wechat", "upload_chain"),
    }
    big = pictures(1, 32, 2000)
    assert all(get_attack(name)(big).shape != big.shape for name in changing)


@pytest.mark.parametrize("attack", MIDDLE, ids=repr)
def test_tiny_images_are_attacked_too(attack, seeded):
    for size in ((1, 1), (1, 7), (5, 2)):
        assert attack(torch.full((1, 3, *size), 0.5), generator=seeded(0)).isfinite().all()


@pytest.mark.parametrize("attack", MIDDLE, ids=repr)
def test_batched_equals_single(attack, pictures, seeded):
    images = pictures(4, 40, 56)
    batch = attack(images, generator=seeded(5, 6, 7, 8))
    single = [attack(image[None], generator=seeded(seed)) for image, seed in zip(images, (5, 6, 7, 8), strict=True)]
    torch.testing.assert_close(batch, torch.cat(single), atol=1e-5, rtol=0)


# The members of a combination draw for the whole batch, one after the other.
SIMPLE = [known() for known in CLASSICAL if known.kind == "D" and not issubclass(known, Combination)]


@pytest.mark.parametrize("attack", SIMPLE, ids=repr)
def test_one_generator_draws_for_the_samples_in_order(attack, pictures, seeded):
    images = pictures(3, 32, 32)
    shared = seeded(0)
    single = torch.cat([attack(image[None], generator=shared) for image in images])
    torch.testing.assert_close(attack(images, generator=seeded(0)), single, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attack", MIDDLE, ids=repr)
def test_same_seed_same_result(attack, pictures, seeded):
    images = pictures(2, 40, 40)
    state = torch.random.get_rng_state()
    first = attack(images, generator=seeded(1, 2))
    assert torch.equal(first, attack(images, generator=seeded(1, 2)))
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator was used"


@pytest.mark.parametrize(
    "name", ["crop", "erase", "noise", "geometric", "degradation", "all", "collage", "micro_warp"]
)
def test_other_seed_other_result(name, pictures, seeded):
    images = pictures(1, 64, 64)
    one, other = (get_attack(name)(images, generator=seeded(seed)) for seed in (1, 2))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("attack", MIDDLE, ids=repr)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_rounded(attack, dtype, pictures, seeded):
    images = pictures(2, 48, 48).to(dtype)
    expected = attack(images.float(), generator=seeded(1, 2)).to(dtype)
    assert torch.equal(attack(images, generator=seeded(1, 2)), expected)


@pytest.mark.parametrize("attack", MIDDLE, ids=repr)
def test_bfloat16_is_close_to_float32(attack, pictures, seeded, psnr):
    """Pictures rounded to bfloat16 stay as close as they were (54 dB), but for what codecs and slopes make of it."""
    images = pictures(2, 48, 48)
    half = attack(images.bfloat16(), generator=seeded(1, 2))
    assert psnr(half, attack(images, generator=seeded(1, 2))) > (30 if attack.label.startswith(WITH_CODEC) else 44)


@pytest.mark.parametrize("known", CLASSICAL, ids=lambda known: known.name)
def test_identity_changes_nothing(known, pictures, psnr):
    images = (pictures(2, 33, 48) * 255).round() / 255
    identity = known(strength=known.identity)
    if known.identity_deviation:
        assert not torch.equal(identity(images), images)
        grey = images[:, :1].expand(-1, 3, -1, -1)
        assert psnr(identity(grey), grey) > 40
    else:
        assert torch.equal(identity(images), images)
    assert identity.is_identity


CONTINUOUS = ["brightness", "contrast", "rotation", "blur", "crop", "gamma", "hue", "sharpness", "grey", "micro_warp"]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_it_is_continuous_at_the_identity(name, pictures, psnr):
    images = pictures(2, 64, 64)
    identity = get_attack(name).identity
    toward = get_attack(name).sweep[-1] - identity
    gentle = get_attack(name, strength=identity + 1e-4 * toward)
    assert psnr(gentle(images), images) > (25 if name == "crop" else 45)


def sweep(known, images, psnr):
    return [psnr(known(strength=s)(images, generator=torch.Generator().manual_seed(1)), images) for s in known.sweep]


SWEPT = [known for known in CLASSICAL if known().keeps_size and len(known.sweep) > 1]
FAST = [known for known in SWEPT if known.kind == "D" or known.name == "median"]


@pytest.mark.parametrize("known", FAST, ids=lambda known: known.name)
def test_quality_falls_over_the_sweep(known, realistic, psnr):
    quality = sweep(known, realistic, psnr)
    assert quality == sorted(quality, reverse=True)
    assert quality[0] > quality[-1] + 0.5


@pytest.mark.slow
@pytest.mark.parametrize("known", [k for k in SWEPT if k not in FAST], ids=lambda known: known.name)
def test_quality_falls_over_the_sweep_of_slow_attacks(known, realistic, psnr):
    quality = sweep(known, realistic, psnr)
    assert quality == sorted(quality, reverse=True)
    assert quality[0] > quality[-1] + 0.5


@pytest.mark.parametrize("known", list_attacks(), ids=lambda known: known.name)
def test_default_is_the_middle_of_the_sweep(known):
    assert known().strength == known.sweep[len(known.sweep) // 2]
    # Towards the hard end, away from the identity.
    distance = [abs(strength - known.identity) for strength in known.sweep]
    assert distance == sorted(distance)


GRADIENTS = [
    ("rotation", 10),
    ("crop", 0.5),
    ("erase", 0.1),
    ("flip", 1),
    ("scale", 0.6),
    ("micro_warp", 20),
    ("border", 0.5),
    ("pad", 1),
    ("aspect_crop", 1),
    ("collage", 2),
    ("grey", 0.5),
    ("geometric", 0.4),
    ("brightness", 1.3),
    ("contrast", 1.3),
    ("saturation", 1.3),
    ("hue", 30),
    ("gamma", 1.5),
    ("gamma", 0.5),
    ("sharpness", 1.5),
    ("photometric", 0.3),
    ("blur", 100),
    ("noise", 0.02),
    ("median", 1),
    ("bilateral_guided", 1),
    ("non_local_means", 0.3),
    ("total_variation", 0.05),
]


@pytest.mark.parametrize(("name", "strength"), GRADIENTS)
def test_gradients_match_finite_differences(name, strength, seeded):
    attack = get_attack(name, strength=strength)
    if name == "non_local_means":
        attack = dataclasses.replace(attack, search=1, patch=1)
    if name == "total_variation":
        attack = dataclasses.replace(attack, steps=10)
    images = 0.3 + 0.3 * torch.rand(1, 3, 5, 6, generator=seeded(0), dtype=torch.float64)
    images.requires_grad_()
    run = lambda x: attack(x, generator=seeded(0))  # noqa: E731
    assert torch.autograd.gradcheck(run, images, eps=1e-7, atol=1e-4, fast_mode=name in SLOW)


@pytest.mark.parametrize("attack", MIDDLE, ids=repr)
def test_gradients_flow_and_are_finite(attack, pictures, seeded):
    # Pure black and white are where powers, roots and clipping have their worst slopes.
    images = pictures(2, 32, 32)
    images[:, :, :4], images[:, :, -4:] = 0, 1
    images.requires_grad_()
    attack(images, generator=seeded(1, 2)).square().sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0
