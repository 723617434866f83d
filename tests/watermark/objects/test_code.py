"""The code of objects in latents: how likely it is by chance, and how it is written and found."""

import pytest
import torch
from torch.nn.functional import conv2d, max_pool2d, pad

from privgen.errors import UsageError
from privgen.hub import load_extra, load_pipeline
from privgen.training.watermark.object_code_fit import solve
from privgen.watermark.objects.choose import carriers_of_call
from privgen.watermark.objects.code import CodeReader, code_pattern, code_windows, windows_evidence
from privgen.watermark.objects.code_carrier import Denoising, LatentCarrier, TokenCarrier
from privgen.watermark.objects.code_read import CodeLocator
from privgen.watermark.objects.keys import ObjectKeys
from privgen.watermark.objects.read import chance, largest
from privgen.watermark.objects.write import ObjectMark, mark_objects
from privgen.watermark.tile.pattern import pattern_of


@pytest.fixture(scope="module")
def reader():
    pipe = load_pipeline("mini", device="cpu", dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    return CodeReader(pipe, load_extra("object_code", "mini", device="cpu"))


@pytest.fixture(scope="module")
def one_object(scene, owners):
    return [ObjectMark("cat", owners[0], scene[1][0])]


def test_correlations_of_random_keys_are_normal(reader, scene, key_of):
    """In any window of any image; so the best of all windows is at most as likely as `chance` says."""
    field, _ = reader.field(scene[0])
    windows = code_windows(*field.shape[1:])
    with torch.no_grad():
        rows = windows_evidence(reader.code.evidence(field), windows)
    templates = torch.stack([code_pattern(key_of(n), reader.code.config.waves).template for n in range(1500)])
    z = (templates @ rows[::40].conj().T).real
    assert float(z.mean(0).abs().max()) < 4 / 1500**0.5
    torch.testing.assert_close(z.std(0), torch.ones(z.shape[1]), atol=0.08, rtol=0)
    p = torch.from_numpy(chance(largest(templates, rows)[0], len(rows)))
    for rate in (0.05, 0.5):
        assert float((p <= rate).double().mean()) <= rate + 3 * (rate / 1500) ** 0.5


def test_a_key_has_other_numbers_than_in_tiles(key_of):
    code, tile = (pattern.noise[:96] for pattern in (code_pattern(key_of(1), 96), pattern_of(key_of(1))))
    like = (code * tile.conj()).sum().abs() / (code.norm() * tile.norm())
    assert float(like) < 0.35


def test_latent_marks_are_found_and_nothing_changes_outside(reader, scene, one_object, key_of):
    carrier = LatentCarrier(reader, steps=4)
    done = mark_objects(scene[0], one_object, psnr=25.0, levels=255, carrier=carrier)
    [item] = done.objects
    assert item.object_psnr == pytest.approx(25, abs=0.1)
    far = max_pool2d(scene[1][0][None, None], 9, 1, 4)[0, 0] < 0.5
    assert torch.equal(done.pixels[:, far], scene[0][:, far])
    mine, other = CodeLocator(reader, [one_object[0].key, key_of(77)], 1e-3)(done.pixels)
    assert (mine.detected, other.detected) == (True, False)
    assert mine.box[0] < 0.4, "the object is on the left"
    assert carrier.matches(carrier.look(done.pixels), scene[1][0], one_object[0].key) >= 40
    assert carrier.matches(carrier.look(scene[0]), scene[1][0], one_object[0].key) <= 36


def test_a_token_writes_what_the_run_was_at_tau(reader, one_object, scene):
    """The branch without the token ends where the pipeline did, so the difference is what the token makes."""
    pipe, call = reader.pipe, {"prompt": "a cat", "num_inference_steps": 14, "guidance_scale": 3.0}
    objects = ObjectKeys({"cat": one_object[0].key}, carrier="token")
    with carriers_of_call(pipe, call, objects, reader.code) as carriers:
        z = pipe(**call, output_type="latent", generator=torch.Generator().manual_seed(0)).images
        carrier = carriers(0)
    assert isinstance(carrier, TokenCarrier)
    run = carrier.denoising
    assert isinstance(run, Denoising)
    assert run.timesteps == tuple(t for t in pipe.scheduler.timesteps.tolist() if t <= reader.code.config.tau)
    words = torch.zeros(2, *reader.code.words.shape)
    basis = torch.zeros(0)
    with torch.no_grad():
        spoken = carrier.change(z, words, basis)
        twice = carrier.change(z, words, basis)
    assert torch.equal(spoken, twice)
    torch.testing.assert_close(carrier.plain(), z, atol=2e-4, rtol=0)
    done = mark_objects(scene[0], one_object, psnr=28.0, carrier=TokenCarrier(reader, steps=1))
    far = max_pool2d(scene[1][0][None, None], 9, 1, 4)[0, 0] < 0.5
    assert torch.equal(done.pixels[:, far], scene[0][:, far])
    assert not torch.equal(done.pixels, scene[0])


def test_payloads_and_other_latents_are_refused(reader, owners):
    with pytest.raises(UsageError, match="Tiles carry payloads"):
        ObjectKeys({"cat": owners[0]}, payload=1, carrier="latent")
    with (
        pytest.raises(UsageError, match="code of objects"),
        carriers_of_call(reader.pipe, {"prompt": "a cat"}, ObjectKeys({"cat": owners[0]}, carrier="latent"), None),
    ):
        pass


def test_the_fit_finds_a_known_answer():
    """Where one channel is read three times as clearly at the same cost, the waves are of that channel."""
    generator = torch.Generator().manual_seed(0)
    change, rest = (torch.randn(40, 3, 16, 16, generator=generator) for _ in range(2))
    loud = torch.tensor([1.0, 3.0, 1.0]).view(3, 1, 1)
    blur = torch.tensor([[0.0, 0.2, 0.0], [0.2, 1.0, 0.2], [0.0, 0.2, 0.0]]).expand(3, 1, 3, 3)
    answer = loud * conv2d(pad(change, (1,) * 4), blur, groups=3)
    code = solve(128, rest, answer, change, change, torch.ones(40, 1, 16, 16), waves=18)
    assert code.config.waves == 18
    size = code.written.square().sum(2).sqrt()
    assert bool((size.argmax(1) == 1).all())
    seen = code.answers.square().sum((1, 2)).sqrt()
    assert bool((seen[:-1] >= seen[1:] - 1e-4).all())
    shown = code.seen(change[:1])[..., 4:12, 4:12]
    torch.testing.assert_close(shown, answer[:1, :, 4:12, 4:12], atol=0.5, rtol=0.25)
