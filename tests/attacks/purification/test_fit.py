"""Attacks with a model of one size on larger images, and their steps: counted, measured and shown."""

import io
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from privgen.attacks import (
    DiffPure,
    FittedAttack,
    GrIDPure,
    Impress,
    Regeneration,
    Rinsing,
    VaeRoundTrip,
    attack_files,
)
from privgen.attacks.estimate import announcement, expected_seconds, measure_step
from privgen.attacks.purification.denoiser import denoiser_of, load_denoiser
from privgen.attacks.purification.fit import shrunk
from privgen.attacks.steps import Work, count_steps, listening
from privgen.io.files import write_bytes
from privgen.io.images import encode_image, from_pil, load_image, to_pil


CANVAS = 16


@dataclass(frozen=True, repr=False)
class Brighter(FittedAttack):
    """Adds its strength to all pixels, and remembers which sizes it was given."""

    name, unit, sweep, bounds, whole = "brighter", "of white", (0.1,), (-1, 1), False
    identity = 1
    strength: float = 0.0
    seen: ClassVar[list[tuple[int, int]]] = []

    def _canvas(self):
        return CANVAS

    def _steps(self):
        return 1

    def _purify(self, images, generators):
        self.seen.append(tuple(images.shape[-2:]))
        return images + self.strength


@pytest.fixture(scope="module")
def denoiser(tiny_ddpm):
    return denoiser_of(tiny_ddpm())


@pytest.fixture(scope="module")
def pipeline(tiny):
    return tiny.tiny_pipeline()


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (61, 37), (8, 200), (300, 40)])
def test_only_the_change_is_enlarged(size):
    images = torch.randint(256, (2, 3, *size), generator=torch.Generator().manual_seed(0)) / 255
    assert torch.equal(Brighter(0.0)(images), images), "an attack that changes nothing changed a bit"
    torch.testing.assert_close(Brighter(0.1)(images), (images + 0.1).clamp(max=1), atol=1e-6, rtol=0)
    Brighter.seen.clear()
    Brighter(0.1)(images)
    ((height, width),) = Brighter.seen
    assert (height, width) == size or height * width <= 1.2 * CANVAS**2
    assert abs(height / width * size[1] / size[0] - 1) < 0.2


@pytest.mark.parametrize("size", [(17, 16), (61, 37), (5, 400)])
def test_tiles_cover_the_image_at_full_size(size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    Brighter.seen.clear()
    torch.testing.assert_close(Brighter(0.1, fit="tiles")(images), (images + 0.1).clamp(max=1), atol=1e-6, rtol=0)
    assert set(Brighter.seen) == {(min(size[0], CANVAS), min(size[1], CANVAS))}
    Brighter.seen.clear()
    Brighter(fit="whole")(images)
    assert Brighter.seen == [size]


def test_the_canvas_keeps_the_aspect_ratio():
    assert shrunk(4000, 6000, 128) == (105, 157)
    assert shrunk(1024, 1024, 128) == (128, 128)
    assert shrunk(1, 10**6, 128) == (1, 128_000)
    with pytest.raises(ValueError, match="brighter: expected fit resize, tiles, whole, got 'full'"):
        Brighter(fit="full")


@torch.no_grad()
@pytest.mark.parametrize("fit", ["resize", "tiles"])
def test_contract(fit, denoiser, pictures, seeded, keeps_contract):
    keeps_contract(DiffPure(100, steps=2, model=denoiser, fit=fit), pictures(2, 21, 35))


@torch.no_grad()
def test_images_of_the_model_s_size_are_attacked_whole(denoiser, pipeline, pictures, seeded):
    """Whatever `fit` says; and so are those of the paper's grid of GrIDPure, which is two tiles wide."""
    for attack, side in (
        (DiffPure(100, steps=2, model=denoiser), 16),
        (GrIDPure(1, t_star=2, model=denoiser), 32),
        (Regeneration(20, model=pipeline), 32),
    ):
        whole = replace(attack, fit="whole")
        for height, same in ((side, True), (side + 4, False)):
            images = pictures(1, height, side)
            results = [known(images, generator=seeded(1)) for known in (attack, whole)]
            assert torch.equal(*results) == same


def test_the_canvas_of_a_denoiser_that_a_model_carries():
    """It has learnt crops of 64 pixels from the images of 128 pixels that mini draws."""
    found = load_denoiser("mini", device="cpu")
    assert (found.size, found.canvas) == (64, 128)
    assert load_denoiser("mini", space="latent", device="cpu").canvas == 128


STEPS = {
    "ddpm": DiffPure(30, steps=3, repeats=2),
    "every": DiffPure(4),
    "ode": DiffPure(100, mode="ode", steps=2),
    "sde": DiffPure(5, mode="sde"),
    "gridpure": GrIDPure(2, t_star=3),
    "regeneration": Regeneration(60),
    "rinsing": Rinsing(2, t=40),
    "vae": VaeRoundTrip(2),
    "impress": Impress(2),
}


@torch.no_grad()
@pytest.mark.parametrize("name", STEPS)
def test_steps_are_as_many_as_announced(name, denoiser, pipeline, pictures, seeded):
    attack = STEPS[name]
    model = denoiser if name in ("ddpm", "every", "ode", "sde", "gridpure") else pipeline
    for fit, size in (("resize", (40, 50)), ("tiles", (40, 50)), ("whole", (12, 16))):
        done = []
        fitted = replace(attack, model=model, fit=fit)
        with listening(done.append):
            fitted(pictures(2, *size), generator=seeded(1, 2))
        assert sum(done) == 2 * count_steps(fitted.work(*size))


def test_a_measurement_takes_two_steps_and_no_randomness(denoiser, pictures):
    attack, state, done = DiffPure(500, model=denoiser), torch.random.get_rng_state(), []
    image = pictures(1, 16, 16)[0]
    with listening(done.append):
        seconds = measure_step(attack, image)
    assert not done, "the caller's listener heard steps that are none of the work"
    assert 0 < seconds < 5
    assert torch.equal(state, torch.random.get_rng_state())
    assert expected_seconds([[Work(4, 10, 256)], [Work(1, 10, 128)]], [Work(4, 10, 256)], 2.0) == 90.0


@pytest.mark.parametrize(
    ("works", "seconds", "line"),
    [
        ([[Work(12, 40, 9)]] * 3, 240, "about 4 minutes for 3 images (12 tiles x 40 steps each)"),
        ([[Work(1, 1, 9)]], 14, "about 10 seconds for 1 image (1 step)"),
        ([[Work(1, 40, 9)], [Work(2, 40, 9)]], 7300, "about 2 hours for 2 images (120 steps of the model in all)"),
        ([[Work(1, 3, 9), Work(1, 4, 9)]], 89, "about 90 seconds for 1 image (7 steps of the model in all)"),
    ],
)
def test_announcements(works, seconds, line):
    assert announcement(works, seconds) == line


@pytest.fixture
def photos(tmp_path, pictures):
    folder = tmp_path / "photos"
    for name, seed in (("a.png", 0), ("b.png", 1)):
        image = from_pil(to_pil(pictures(1, 40, 24, seed)[0]))
        write_bytes(folder / name, encode_image(image, "PNG"))
    return folder


def test_files_are_announced_and_noted(photos, tmp_path, denoiser, monkeypatch):
    monkeypatch.setattr("privgen.attacks.files.LONG", 0.0)
    said = []
    attack = DiffPure(100, steps=3, model=denoiser)
    result = attack_files(
        attack, [photos], tmp_path / "out", announce=said.append, report=lambda file: said.append(file)
    )
    assert said[0] == "about 10 seconds for 2 images (3 steps each)"
    assert said[1:] == list(result.files)
    assert result.files[0].notes[0].startswith("diffpure worked at 12 x 21 pixels")
    # The measurement has not changed what is drawn.
    assert attack_files(attack, [photos], tmp_path / "again").files[0].psnr == result.files[0].psnr
    attack_files(attack, [photos], tmp_path / "out", announce=said.append)
    assert len(said) == 3, "nothing is announced if nothing is left to do"


def test_an_interruption_between_steps_leaves_nothing_half_written(photos, tmp_path, tiny_ddpm):
    pipe, calls = tiny_ddpm(), []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    handle = pipe.unet.register_forward_pre_hook(interrupt)
    attack, out = DiffPure(100, steps=3, model=denoiser_of(pipe)), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        attack_files(attack, [photos], out)
    assert {path.name for path in out.iterdir()} == {"a.png", "attacks.jsonl"}
    kept = load_image(out / "a.png").pixels
    handle.remove()
    assert [file.status for file in attack_files(attack, [photos], out).files] == ["skipped", "done"]
    assert torch.equal(load_image(out / "a.png").pixels, kept)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_a_bar_of_steps_on_terminals(stream, shown, denoiser, pictures, seeded, monkeypatch):
    monkeypatch.setattr("sys.stderr", stream())
    images, attack = pictures(2, 16, 16), DiffPure(100, steps=3, model=denoiser)
    with_bar = attack(images, generator=seeded(1, 2), progress=True)
    assert ("6/6" in sys.stderr.getvalue()) == shown
    assert torch.equal(with_bar, attack(images, generator=seeded(1, 2)))
