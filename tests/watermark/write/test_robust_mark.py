"""Marks that are fitted to their image."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from privgen.attacks import Rinsing
from privgen.diffusion.latents import decode, encode
from privgen.diffusion.sampling import Sampling
from privgen.errors import UsageError
from privgen.evaluation.watermark.generation import Generation
from privgen.hub import load_extra, load_pipeline
from privgen.io.images import load_image
from privgen.io.residual import add_residual, to_canvas
from privgen.pipelines.generation import generate_files
from privgen.pipelines.pipeline_stable_diffusion_watermark import StableDiffusionWatermarkPipeline
from privgen.watermark.key import Key, Secret
from privgen.watermark.networks import Networks
from privgen.watermark.protocols import key_bits
from privgen.watermark.read.logits import read_logits
from privgen.watermark.watermark import Watermark
from privgen.watermark.write.callbacks import LatentMarkCallback
from privgen.watermark.write.mark_spec import KeyMark, MarkSpec
from privgen.watermark.write.marker import Marker
from privgen.watermark.write.robust_mark import RobustMarker, _window


KEY = Key("alice", Secret(bytes(range(32))))


@pytest.fixture(scope="module")
def mini():
    """The shipped model as it marks while generating, its extractor and its mapper."""
    pipe = load_pipeline("mini", pipeline_class=StableDiffusionWatermarkPipeline)
    pipe.extractor, pipe.latent_mapper = load_extra("extractor"), load_extra("latent_mapper")
    return pipe


@pytest.fixture(scope="module")
def photos(photo_files):
    """Two photographs at mini's size."""
    return to_canvas([load_image(path).pixels for path in photo_files[:2]], 128)


def rms(images):
    return images.square().mean(dim=(1, 2, 3)).sqrt()


def refined(pipe, canvases, steps):
    bits = key_bits([KEY], pipe.latent_mapper)
    z = encode(pipe.vae, canvases)
    residual = pipe.latent_mapper(bits).expand_as(z)
    with torch.no_grad():
        return z, residual, RobustMarker(pipe, pipe.extractor, steps)(z, residual, bits, canvases=canvases)


def test_pixels_change_by_as_much_as_before(mini, photos):
    z, before, after = (part.detach() for part in refined(mini, photos, 3))
    with torch.no_grad():
        clean, *marked = (decode(mini.vae, z + r) for r in (torch.zeros_like(before), before, after))
    torch.testing.assert_close(rms(marked[1] - clean), rms(marked[0] - clean), rtol=0.01, atol=0)
    assert float((after - before).abs().max()) > 0.01


def test_half_of_the_original_residual_is_kept(mini, photos):
    """Adam's first step adds +-0.3 to each value, in RMS, in directions that have little to do with the residual r.

    So the result has a cosine of 1 / sqrt(1 + 0.3^2) = 0.958 with r, and of 0.981 once r / 2 is added.
    """
    _, before, after = (part.detach().flatten(1) for part in refined(mini, photos, 1))
    cosine = torch.nn.functional.cosine_similarity(before, after)
    torch.testing.assert_close(cosine, torch.full((2,), 0.981), rtol=0, atol=0.008)


def test_no_steps_change_nothing(mini, photos):
    _, before, after = (part.detach() for part in refined(mini, photos, 0))
    assert torch.equal(before, after)


def test_an_image_does_not_depend_on_its_batch(mini, photos):
    batch = refined(mini, photos, 2)[2]
    single = torch.cat([refined(mini, photo[None], 2)[2] for photo in photos])
    torch.testing.assert_close(batch, single, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 160)])
def test_the_part_that_must_do_is_half_of_the_area_somewhere(height, width):
    images = torch.zeros(3, 3, height, width)
    windows = [_window(images, torch.Generator().manual_seed(i))[0, 0] for i in range(20)]
    for window in windows:
        rows, columns = (int(window.amax(dim=i).sum()) for i in (1, 0))
        assert window.mean() == rows * columns / (height * width) == pytest.approx(0.5, abs=0.01)
        assert rows / columns == pytest.approx(height / width, rel=0.02)
    assert torch.stack(windows).mean(dim=0).min() < 0.2, "corners are left out at times"


def test_networks_are_left_as_they_were(mini, photos):
    mini.vae.train()
    flags = {name: value.requires_grad for name, value in mini.unet.named_parameters()}
    refined(mini, photos, 1)
    assert mini.vae.training
    mini.vae.eval()
    assert flags == {name: value.requires_grad for name, value in mini.unet.named_parameters()}
    assert all(value.grad is None for value in mini.unet.parameters())


def test_rinsing_leaves_more_of_the_mark(mini, photo_files):
    """The margin of the message, with the same noise for both."""
    canvases = to_canvas([load_image(path).pixels for path in photo_files[4:10]], 128)
    z, before, after = refined(mini, canvases, 4)
    message = 2 * key_bits([KEY], mini.extractor) - 1
    margins = []
    for residual in (before, after):
        with torch.no_grad():
            marked = (canvases + decode(mini.vae, z + residual) - decode(mini.vae, z)).clamp(0, 1)
            generators = [torch.Generator().manual_seed(i) for i in range(len(canvases))]
            rinsed = Rinsing(model=mini, strength=2)(marked, generator=generators)
            margins.append(message * mini.extractor(rinsed))
    gained = (margins[1] - margins[0]).mean(dim=1)
    assert float(gained.mean()) > 2 * float(gained.std()) / len(gained) ** 0.5


@pytest.mark.slow
def test_more_bits_are_left_by_rinsing(mini):
    """At the same quality; more than three standard deviations of the difference that 16 x 48 bits have by chance."""
    generation, numbers = Generation(mini, seed=3), range(16)
    keys = [Key(f"k{i}", Secret(bytes([i]) * 32)) for i in numbers]
    plain = torch.cat([generation.images(part) for part in (numbers[:8], numbers[8:])])
    target = key_bits(keys, mini.extractor) > 0.5
    right, psnr = {}, {}
    for steps in (0, 5):
        parts = []
        for i in (0, 8):
            with Watermark(Networks("mini")).on(mini, keys[i : i + 8], carrier="latent", robust_steps=steps):
                parts.append(generation.images(numbers[i : i + 8]))
        marked = torch.cat(parts)
        psnr[steps] = float((-20 * torch.log10(rms(marked - plain))).mean())
        generators = [torch.Generator().manual_seed(i) for i in numbers]
        rinsed = Rinsing(model=mini, strength=2)(marked, generator=generators)
        right[steps] = float(((read_logits(rinsed, mini.extractor) > 0) == target).float().mean())
    assert psnr[5] == pytest.approx(psnr[0], abs=0.1)
    assert right[5] > right[0] + 3 * (2 * 0.25 / (16 * 48)) ** 0.5 / 2


def test_photographs_are_marked_at_the_quality_asked_for(mini, photo_files):
    photo = load_image(photo_files[3])
    marker = Marker(Networks("mini"), MarkSpec("latent", robust_steps=2))
    with torch.inference_mode():
        residual = marker.residuals(to_canvas([photo.pixels], marker.size), [KEY])[0]
    marked = add_residual(photo.pixels, residual, psnr=38.1)
    assert marked.psnr == pytest.approx(38.1, abs=0.02)
    read = read_logits([marked.pixels], mini.extractor)[0] > 0
    assert int((read == torch.tensor(KEY.bits(48)).bool()).sum()) >= 46


def test_bfloat16(photos):
    pipe = load_pipeline("mini", dtype="bfloat16", pipeline_class=StableDiffusionWatermarkPipeline)
    pipe.extractor, pipe.latent_mapper = load_extra("extractor"), load_extra("latent_mapper")
    after = refined(pipe, photos, 1)[2]
    assert after.dtype == torch.float32
    assert bool(after.isfinite().all())


@pytest.mark.parametrize("kind", ["sd15", "sd21"])
def test_tiny_pipelines(tiny, kind, marked_model):
    pipe = tiny.tiny_pipeline(kind)
    extractor, mapper = (load_extra(name, str(marked_model)) for name in ("extractor", "latent_mapper"))
    networks = Networks.of(pipeline=pipe, latent_mapper=mapper, extractor=extractor)
    marker = Marker(networks, MarkSpec("latent", robust_steps=1))
    residuals = marker.residuals(torch.rand(2, 3, marker.size, marker.size), [KEY])
    assert bool(residuals.isfinite().all())


def test_generated_files_are_the_same_without_steps(tmp_path):
    made = {}
    for name, spec in (
        ("plain", MarkSpec("latent")),
        ("0", MarkSpec("latent", robust_steps=0)),
        ("1", MarkSpec("latent", robust_steps=1)),
    ):
        target = tmp_path / f"{name}.png"
        generate_files("a clock", target, sampling=Sampling(3), mark=KeyMark(KEY, spec))
        made[name] = load_image(target).pixels
    assert torch.equal(made["plain"], made["0"])
    assert not torch.equal(made["0"], made["1"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"carrier": "token"}, "use them with the carrier latent"),
        ({"tau": 100}, "leave tau out"),
        ({"extractor": None}, "pass extractor="),
    ],
)
def test_what_cannot_be_refined_in_a_pipeline(mini, change, message):
    pipe = StableDiffusionWatermarkPipeline(**mini.components, requires_safety_checker=False)
    pipe.latent_mapper = mini.latent_mapper
    call = {"key": KEY, "carrier": "latent", "robust_steps": 1, "extractor": mini.extractor, **change}
    with pytest.raises(UsageError, match=message):
        pipe("a clock", num_inference_steps=2, **call)


def test_what_cannot_be_refined_elsewhere(mini):
    networks = Networks.of(pipeline=mini, token_mapper=mini.latent_mapper, extractor=mini.extractor)
    with pytest.raises(UsageError, match="use them with the carrier latent"):
        Marker(networks, MarkSpec(robust_steps=1))
    with pytest.raises(UsageError, match="There is no extractor"):
        Marker(Networks.of(pipeline=mini, latent_mapper=mini.latent_mapper), MarkSpec(robust_steps=1))
    with pytest.raises(ValueError, match="at least 0 steps"):
        RobustMarker(mini, mini.extractor, -1)
    with pytest.raises(ValueError, match="expected no tau"):
        LatentMarkCallback(torch.zeros(1, 8, 16, 16), tau=100, improve=lambda z, residual: residual)


def test_flow_matching_cannot_be_refined(mini):
    pipe = StableDiffusionWatermarkPipeline(**mini.components, requires_safety_checker=False)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UsageError, match="Tokens, marks and protections can be optimised"):
        RobustMarker(pipe, mini.extractor)
