"""Attacks by those who have collected marked images: averaging, and a surrogate extractor."""

import pytest
import torch

from privgen.attacks import (
    AveragingForgery,
    AveragingRemoval,
    Blur,
    Examples,
    SurrogateForgery,
    SurrogateRemoval,
    attack_files,
    mean_residual,
    parse_attack,
)
from privgen.attacks.adaptive.examples import LARGEST
from privgen.attacks.adaptive.surrogate_network import fit_surrogate
from privgen.errors import PrivgenError, UsageError
from privgen.io.images import save_image


@pytest.fixture(scope="module")
def mark(pictures):
    """(3, 32, 32), one residual for all images: what the mark of one key is like, a little louder."""
    return 0.04 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1)).repeat_interleave(
        4, 1
    ).repeat_interleave(4, 2)


@pytest.fixture(scope="module")
def collected(mark, pictures):
    """Marked images, other unmarked ones, and fresh ones without the mark; values stay away from 0 and 1."""
    images = 0.2 + 0.6 * pictures(208, 32, 32, seed=3)
    return Examples(images[:100] + mark), Examples(images[100:200]), images[200:]


def test_the_residual_is_exact_for_pairs(collected, mark):
    marked, _, _ = collected
    torch.testing.assert_close(mean_residual(marked.images, marked.images - mark), mark)


def test_the_residual_gets_better_with_more_images(collected, mark):
    """Content averages out like 1 / sqrt(N)."""
    marked, unmarked, _ = collected
    error = [float((mean_residual(marked.images[:n], unmarked.images[:n]) - mark).norm()) for n in (4, 25, 100)]
    assert error == sorted(error, reverse=True)
    assert 2 < error[0] / error[2] < 12


def test_without_unmarked_images_a_blur_stands_for_them(collected):
    marked, _, _ = collected
    blurred = Blur(0.5, reference=None)(marked.images)  # 8 pixels at 512 are half a pixel at 32
    torch.testing.assert_close(mean_residual(marked.images), (marked.images - blurred).mean(0))


def test_averaging_takes_away_and_writes(collected, mark):
    marked, _, fresh = collected
    options = {"marked": marked, "unmarked": Examples(marked.images - mark)}
    torch.testing.assert_close(AveragingForgery(**options)(fresh), fresh + mark)
    torch.testing.assert_close(AveragingRemoval(**options)(fresh + mark), fresh)
    torch.testing.assert_close(AveragingForgery(strength=2, **options)(fresh), (fresh + 2 * mark).clamp(0, 1))
    assert torch.equal(AveragingForgery(strength=0)(fresh), fresh)
    first = AveragingRemoval(count=1, **options).residual()
    assert torch.equal(first, mean_residual(marked.images[:1], marked.images - mark))


def test_averaging_fits_images_of_any_size(collected):
    marked, unmarked, _ = collected
    attack = AveragingForgery(marked=marked, unmarked=unmarked)
    large = torch.full((2, 3, 50, 70), 0.5)
    added = attack(large) - 0.5
    expected = torch.nn.functional.interpolate(attack.residual()[None], (50, 70), mode="bicubic", antialias=True)
    torch.testing.assert_close(added[:1], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(attack(large)[:1], attack(large[:1]))


def test_a_copied_mark_is_found(marked_model, photo_files, tmp_path):
    """The mark of a real, tiny model, averaged over photographs and pasted on others, is detected with its key."""
    from privgen.hub import Placement
    from privgen.io.images import load_image
    from privgen.io.residual import add_residual, to_canvas
    from privgen.watermark.key import Key, Secret
    from privgen.watermark.networks import Networks
    from privgen.watermark.read.logits import read_logits
    from privgen.watermark.write.marker import Marker

    key = Key("victim", Secret(bytes(range(32))))
    networks = Networks(str(marked_model), Placement("cpu"))
    marker, extractor = Marker(networks), networks.extractor
    plain = to_canvas([load_image(path).pixels for path in photo_files[:48]], 32)
    residuals = marker.residuals(plain, [key])
    marked = torch.stack([add_residual(x, r, psnr=30).pixels for x, r in zip(plain, residuals, strict=True)])
    bits = torch.tensor(key.bits(48)) > 0
    matches = lambda images: ((read_logits(images, extractor) > 0) == bits).sum(1).float().mean()  # noqa: E731
    options = {"marked": Examples(marked[:20]), "unmarked": Examples(plain[20:40])}
    assert matches(plain[40:]) < 32
    assert matches(AveragingForgery(**options)(plain[40:])) > 40
    assert matches(AveragingRemoval(**options)(marked[40:])) < 32 < 40 < matches(marked[40:])


@pytest.fixture(scope="module")
def surrogate(collected):
    marked, unmarked, _ = collected
    return fit_surrogate(marked.images, unmarked.images, steps=100)


@torch.no_grad()
def test_a_surrogate_tells_marked_images(surrogate, collected, mark):
    _, _, fresh = collected
    assert (surrogate(fresh + mark) > 0).float().mean() >= 0.75
    assert (surrogate(fresh) < 0).float().mean() >= 0.75
    assert surrogate(torch.rand(2, 3, 20, 50)).shape == (2,)


def test_the_same_seed_gives_the_same_surrogate(collected, tmp_path):
    marked, unmarked, _ = collected
    state = torch.random.get_rng_state()
    first, again, other = (fit_surrogate(marked.images, unmarked.images, steps=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator was used"
    x = marked.images[:2]
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))
    first.save_pretrained(tmp_path)
    torch.testing.assert_close(SurrogateRemoval(model=tmp_path).network()(x), first(x))


@torch.no_grad()
def test_surrogate_attacks_convince_the_surrogate(surrogate, collected, mark, seeded, keeps_contract):
    _, _, fresh = collected
    sources = seeded(*range(8))
    removed = SurrogateRemoval(strength=8, steps=10, model=surrogate)(fresh + mark, generator=sources)
    forged = SurrogateForgery(strength=8, steps=10, model=surrogate)(fresh, generator=seeded(*range(8)))
    assert (surrogate(removed) < surrogate(fresh + mark)).all()
    assert (surrogate(forged) > surrogate(fresh)).all()
    assert (forged - fresh).abs().max() <= 8 / 255 + 1e-6
    keeps_contract(SurrogateForgery(strength=4, steps=3, model=surrogate), fresh[:2])


@torch.no_grad()
def test_a_surrogate_is_fitted_once_and_when_needed(collected, seeded):
    marked, unmarked, fresh = collected
    options = {"marked": marked, "unmarked": unmarked, "fit_steps": 3, "steps": 2}
    attack = SurrogateForgery(**options)
    expected = SurrogateForgery(model=fit_surrogate(marked.images, unmarked.images, steps=3), steps=2)
    assert torch.equal(attack(fresh[:1], generator=seeded(0)), expected(fresh[:1], generator=seeded(0)))
    assert attack.network() is attack.with_strength(8).network() is SurrogateRemoval(**options).network()


def test_folders(collected, tmp_path):
    """From folders to files, at another size; folders of other content are other attacks."""
    marked, unmarked, _ = collected
    for name, images in (("marked", marked.images[:3]), ("unmarked", unmarked.images[:2])):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            save_image(image, tmp_path / name / f"{i}.png")
    save_image(unmarked.images[5], tmp_path / "photo.png")
    folders = {"marked": tmp_path / "marked", "unmarked": tmp_path / "unmarked"}
    for text in ("averaging_forgery", "surrogate_removal=2,fit_steps=1,steps=1"):
        attack = parse_attack(text, **folders)
        assert (len(attack.marked), attack.marked.size, attack.unmarked.size) == (3, 32, 32)
        assert f"unmarked=unmarked_2_{attack.unmarked.digest}" in repr(attack)
        assert attack_files(attack, [tmp_path / "photo.png"], tmp_path / attack.name).count("done") == 1
    (tmp_path / "marked" / "2.png").unlink()
    assert repr(parse_attack(text, **folders)) != repr(attack)


def test_sizes_come_from_the_images(pictures):
    """Squares are as large as the shorter side of the first marked image, up to a limit; unmarked ones follow."""
    wide, tall, huge = pictures(1, 20, 40)[0], pictures(1, 50, 30)[0], torch.rand(3, 300, 400)
    assert Examples.of([wide, tall]).size == 20
    assert Examples.of([tall, wide]).size == 30
    assert Examples.of([huge]).size == LARGEST
    assert Examples.of([huge], size=280).size == 280
    attack = AveragingRemoval(marked=wide[None], unmarked=tall[None])
    assert (attack.marked.size, attack.unmarked.size) == (20, 20)
    assert AveragingRemoval(marked=wide[None], size=24).marked.size == 24


def test_collections_are_equal_if_their_images_are(pictures):
    images = pictures(2, 8, 8)
    one, same, other = Examples(images), Examples(images.clone()), Examples(images.flip(0))
    assert one == same != other
    assert len({one, same, other}) == 2
    assert one != Examples(images, "named")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AveragingRemoval().prepare(), PrivgenError, "averaging_removal needs marked images: give a folder"),
        (lambda: SurrogateForgery().prepare(), PrivgenError, "surrogate_forgery needs marked images"),
        (lambda: SurrogateForgery(marked=torch.rand(1, 3, 8, 8)).prepare(), PrivgenError, "needs unmarked images"),
        (lambda: SurrogateRemoval(model="nowhere").prepare(), PrivgenError, "nowhere holds no surrogate"),
        (lambda: SurrogateRemoval(fit_steps=0), ValueError, "expected fit_steps >= 1, got 0"),
        (lambda: AveragingRemoval(marked=torch.rand(2, 3, 8, 8), count=3), ValueError, "a count of 1 to 2 marked"),
        (lambda: AveragingRemoval(count=0), ValueError, "expected a count of 1 to as many as there are"),
        (lambda: AveragingRemoval(size=0), ValueError, "expected a size >= 1, got 0"),
        (lambda: AveragingRemoval(radius=0), ValueError, "expected a radius above 0, got 0"),
        (lambda: Examples(torch.rand(2, 3, 8, 9)), ValueError, r"expected examples of shape \(N, 3, S, S\)"),
        (lambda: Examples.of([]), ValueError, "expected at least one example, got none"),
        (lambda: mean_residual(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 9, 9)), ValueError, "expected unmarked"),
        (
            lambda: fit_surrogate(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 9, 9), steps=1),
            ValueError,
            "squares of one size",
        ),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_an_empty_folder(tmp_path):
    with pytest.raises(UsageError):
        AveragingRemoval(marked=tmp_path)
