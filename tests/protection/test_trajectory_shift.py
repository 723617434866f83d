import pytest
import torch

from privgen.data.scenes import draw_scene
from privgen.errors import PrivgenError, UsageError
from privgen.hub import Placement
from privgen.models.shift_network import ShiftNetwork
from privgen.protection.registry import method_class
from privgen.protection.surrogate import Surrogate
from privgen.protection.trajectory_shift import Trajectory, TrajectoryShift, ascend, excess_db, lagrangian


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def surrogate(request, tiny, tmp_path_factory):
    """A tiny random model, of noise or of velocity, and copies of its folder for networks of its own."""
    folder = tmp_path_factory.mktemp("models") / request.param
    tiny.tiny_pipeline(request.param).save_pretrained(folder)
    return Surrogate(folder, placement=Placement("cpu", "float32"))


@pytest.fixture(scope="module")
def pixels():
    return torch.stack([torch.from_numpy(draw_scene(7 * 10**9 + i, size=32).pixels) for i in range(2)])


def network(generator, channels=4):
    """A network that shifts something."""
    made = ShiftNetwork(channels, width=16, blocks=1)
    made.leave.weight.data = 0.05 * torch.randn(made.leave.weight.shape, generator=generator)
    return made


def rms_of(psnr):
    return 10 ** (-psnr / 20)


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [1, 4])
def test_a_new_network_returns_the_image_bit_for_bit(surrogate, pixels, n):
    trajectory = Trajectory.of_pipeline(surrogate.pipeline, n)
    with torch.no_grad():
        change = trajectory.change(pixels, trajectory.begin(pixels), ShiftNetwork(4))
    assert torch.equal(pixels + change, pixels)


def test_the_paper_s_delivery_is_the_round_trip(surrogate, pixels):
    trajectory = Trajectory.of_pipeline(surrogate.pipeline, 2)
    beginning = trajectory.begin(pixels)
    with torch.no_grad():
        change = trajectory.change(pixels, beginning, ShiftNetwork(4), "decoded")
    torch.testing.assert_close(pixels + change, beginning.round_trip)
    assert excess_db(change, 30).min() > 0  # what the autoencoder loses


def test_gradients_reach_the_network_through_all_steps(surrogate, pixels, generator):
    trajectory = Trajectory.of_pipeline(surrogate.pipeline, 4)
    shift = ShiftNetwork(4, width=16, blocks=1)
    changed = pixels + trajectory.change(pixels, trajectory.begin(pixels), shift)
    times, noise = trajectory.draw(torch.Size([4, 16, 16]), 2, generator)
    trajectory.loss(changed, times.expand(2, -1), noise.expand(2, -1, -1, -1, -1)).mean().backward()
    assert shift.leave.weight.grad.abs().max() > 0
    assert all(part.grad is None for part in surrogate.pipeline.unet.parameters())


def test_the_loss_is_that_of_training(surrogate, pixels, generator):
    """The mean squared error of the model's own prediction, as in Diffusers' training scripts."""
    pipe, trajectory = surrogate.pipeline, Trajectory.of_pipeline(surrogate.pipeline, 4)
    times, noise = trajectory.draw(torch.Size([4, 16, 16]), 3, generator)
    z = pipe.vae.encode(2 * pixels[:1] - 1).latent_dist.mean * pipe.vae.config.scaling_factor
    z_t = pipe.scheduler.add_noise(z.expand(3, -1, -1, -1), noise, times)
    target = noise
    if pipe.scheduler.config.prediction_type == "v_prediction":
        target = pipe.scheduler.get_velocity(z.expand(3, -1, -1, -1), noise, times)
    output = pipe.unet(z_t, times, trajectory.task.prompt_embeds.expand(3, -1, -1)).sample
    with torch.no_grad():
        found = trajectory.loss(pixels[:1], times[None], noise[None])
    torch.testing.assert_close(found, (output - target).square().mean()[None], rtol=1e-4, atol=1e-5)


def test_a_batch_changes_as_its_images_do(surrogate, pixels, generator):
    trajectory, shift = Trajectory.of_pipeline(surrogate.pipeline, 2), network(generator)
    with torch.no_grad():
        both = trajectory.change(pixels, trajectory.begin(pixels), shift)
        one = trajectory.change(pixels[1:], trajectory.begin(pixels[1:]), shift)
    assert one.abs().max() > 1e-3
    torch.testing.assert_close(both[1:], one, rtol=1e-3, atol=1e-3)  # other kernels see other batches


def test_draws_cover_the_schedule(surrogate, generator):
    times, noise = Trajectory.of_pipeline(surrogate.pipeline, 1).draw(torch.Size([4, 2, 2]), 10, generator)
    assert (times // 100).tolist() == list(range(10))
    assert noise.shape == (10, 4, 2, 2)


def test_excess_is_in_db():
    change = torch.stack([torch.full((3, 4, 4), rms_of(psnr)) for psnr in (30.0, 40.0)])
    torch.testing.assert_close(excess_db(change, 36), torch.tensor([6.0, -4.0]), atol=1e-3, rtol=0)


def test_the_multiplier_rises_while_the_budget_is_exceeded_and_falls_after():
    values = [torch.tensor(0.02)]
    for excess in (3.0, 1.0, -1.0, -5.0):
        values.append(ascend(values[-1], torch.tensor([excess, excess]), 0.01))
    torch.testing.assert_close(torch.stack(values), torch.tensor([0.02, 0.05, 0.06, 0.05, 0.0]))


def test_images_within_the_budget_cost_nothing():
    loss, excess = torch.tensor([0.5, 0.7]), torch.tensor([-3.0, 2.0])
    assert float(lagrangian(loss, excess, 0.1)) == pytest.approx((-0.5 - 0.7 + 0.2) / 2)


def test_optimisation_comes_back_to_the_budget(surrogate, pixels):
    """The first steps go far beyond it, because this random decoder makes much of any shift."""
    image, excess = pixels[:1], {}
    for rate in (0.0, 0.03):
        method = TrajectoryShift(steps=15, n=1, draws=1, dual_rate=rate)
        change = method.change(image, surrogate, rms_of(16), generator_of(0))
        excess[rate] = float(excess_db((image + change).clamp(0, 1) - image, 16))
    assert excess[0.03] < 0.35 < excess[0.0]


@pytest.mark.slow
def test_optimisation_raises_the_loss_of_other_draws():
    """On mini, delivered at 38 dB, and by far more than noise of the same PSNR."""
    psnr, surrogate = 38.0, Surrogate("mini", placement=Placement("cpu", "float32"))
    image = torch.from_numpy(draw_scene(7 * 10**9, size=128).pixels)[None]
    change = TrajectoryShift(steps=10, draws=2).change(image, surrogate, rms_of(psnr), generator_of(0))
    trajectory = Trajectory.of_pipeline(surrogate.pipeline, 4)
    times, noise = (value[None] for value in trajectory.draw(torch.Size([8, 16, 16]), 32, generator_of(1)))
    random = torch.randn(change.shape, generator=generator_of(2))
    changed = [image, *(image + rms_of(psnr) * c / c.square().mean().sqrt() for c in (change, random))]
    with torch.no_grad():
        plain, shifted, noisy = (float(trajectory.loss(x.clamp(0, 1), times, noise)) for x in changed)
    assert shifted > plain + 0.01
    assert shifted > noisy + 0.01


def test_the_change_depends_on_the_generator_alone(surrogate, pixels):
    method = TrajectoryShift(steps=2, n=1, draws=1)
    one, same, other = (method.change(pixels[:1], surrogate, 0.02, generator_of(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_photos_of_other_sizes_are_worked_on_at_the_models_size(surrogate, generator):
    photo = torch.rand(1, 3, 50, 101, generator=generator)
    change = TrajectoryShift(steps=1, n=1, draws=1).change(photo, surrogate, 0.02, generator)
    assert change.shape == (1, 3, 32, 64)


def test_a_trained_network_is_used(surrogate, pixels, generator, tmp_path):
    shift = network(generator)
    shift.save_pretrained(tmp_path)
    change = TrajectoryShift(steps=0, n=2, network=tmp_path).change(pixels[:1], surrogate, 0.02, generator)
    trajectory = Trajectory.of_pipeline(surrogate.pipeline, 2)
    with torch.no_grad():
        expected = trajectory.change(pixels[:1], trajectory.begin(pixels[:1]), shift)
    torch.testing.assert_close(change, expected)


def test_the_network_of_the_model_is_used(tiny, pixels, generator, tmp_path):
    tiny.tiny_pipeline().save_pretrained(tmp_path)
    network(generator).save_pretrained(tmp_path / "privgen" / "shift")
    surrogate = Surrogate(tmp_path, placement=Placement("cpu", "float32"))
    TrajectoryShift(steps=0).prepare(surrogate)
    assert TrajectoryShift(steps=0, n=1).change(pixels[:1], surrogate, 0.02, generator).abs().max() > 0


def test_what_is_missing_is_told(surrogate, generator, tmp_path):
    with pytest.raises(PrivgenError, match="has no shift network; train one with `privgen train shift`"):
        TrajectoryShift(steps=0).prepare(surrogate)
    TrajectoryShift(steps=1).prepare(surrogate)  # needs none
    with pytest.raises(PrivgenError, match="nowhere"):
        TrajectoryShift(network=tmp_path / "nowhere").prepare(surrogate)
    network(generator, channels=8).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="latents of 8 channels, and those of the model have 4"):
        TrajectoryShift(network=tmp_path).prepare(surrogate)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": -1}, "shift: expected steps >= 0, got -1"),
        ({"n": 0}, "shift: expected n >= 1, got 0"),
        ({"draws": 0}, "shift: expected draws >= 1, got 0"),
        ({"size": 20}, "shift: expected a size of at least 16 that is a multiple of 8, got 20"),
        ({"delivery": "neither"}, "shift: expected delivery residual or decoded, got 'neither'"),
    ],
)
def test_bad_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrajectoryShift(**wrong)


def test_the_registry_has_it():
    assert method_class("shift") is TrajectoryShift
