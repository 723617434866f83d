import time
from collections import Counter

import pytest
import torch

from privgen.attacks import JPEG, TRAINING_TABLE, Blur, Choice, Noise, RandomDistortion, Rotation


def test_draws_follow_the_table(seeded):
    shared = seeded(0)
    drawn = [RandomDistortion().draw(shared) for _ in range(4000)]
    counts = Counter(type(attack) for attack in drawn)
    assert counts[type(None)] / 4000 == pytest.approx(0.1, abs=0.02)
    for choice in TRAINING_TABLE:
        assert counts[type(choice.attack)] / 4000 == pytest.approx(choice.probability, abs=0.025)
        strengths = torch.tensor([a.strength for a in drawn if type(a) is type(choice.attack)], dtype=torch.float)
        low, high = sorted((choice.low, choice.high))
        assert low <= strengths.min() <= strengths.max() <= high
        assert strengths.mean().item() == pytest.approx((low + high) / 2, abs=0.15 * (high - low))


def test_other_parameters_are_kept(seeded):
    table = (Choice(JPEG(mode="approximate", subsampling="4:4:4"), 20, 80, 1),)
    attack = RandomDistortion(table).draw(seeded(3))
    assert (attack.mode, attack.subsampling) == ("approximate", "4:4:4")
    assert attack.strength == round(attack.strength)


def test_nothing_left_to_draw_leaves_images_alone(pictures, seeded):
    images = pictures(2, 16, 16)
    assert torch.equal(RandomDistortion(())(images, generator=seeded(0)), images)


def test_one_draw_for_the_batch(pictures, seeded):
    images = pictures(1, 32, 32).expand(4, -1, -1, -1)
    out = RandomDistortion((Choice(Rotation(), -40, 40, 1),))(images, generator=seeded(0))
    torch.testing.assert_close(out, out[:1].expand_as(out))
    assert not torch.equal(out[0], images[0])


def test_one_draw_for_each_sample(pictures, seeded):
    images = pictures(1, 32, 32).expand(4, -1, -1, -1)
    out = RandomDistortion((Choice(Rotation(), -40, 40, 1),), per_sample=True)(images, generator=seeded(0))
    assert len({float(image.sum()) for image in out}) == 4


def test_a_list_of_generators_needs_draws_per_sample(pictures, seeded):
    with pytest.raises(ValueError, match="set per_sample=True"):
        RandomDistortion()(pictures(2, 16, 16), generator=seeded(0, 1))


def test_scaled_towards_the_identity():
    mild = RandomDistortion((Choice(Blur(), 2, 8, 0.5), Choice(JPEG(), 40, 80, 0.5))).scaled(0.5)
    assert mild.table == (Choice(Blur(), 1, 4, 0.5), Choice(JPEG(), 70, 90, 0.5))
    assert all(choice.at(0.3).is_identity for choice in RandomDistortion().scaled(0).table)


def test_gradients_reach_the_images_whatever_is_drawn(pictures, seeded):
    shared = seeded(0)
    for _ in range(30):
        images = pictures(2, 32, 32).requires_grad_()
        RandomDistortion()(images, generator=shared).sum().backward()
        assert images.grad.isfinite().all()
        assert images.grad.abs().sum() > 0


def test_works_inside_a_sequence(pictures, seeded):
    from privgen.attacks import Sequence

    out = Sequence(RandomDistortion(), Noise())(pictures(2, 16, 16), generator=seeded(0))
    assert out.shape == (2, 3, 16, 16)


@pytest.fixture
def one_thread():
    """Threads that wait for each other count as processor time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("per_sample", [False, True])
def test_it_is_cheap(per_sample, pictures, seeded):
    """Less than 30 ms for a training batch on one core, by the median of processor time."""
    images, shared, times = pictures(16, 128, 128), seeded(0), []
    for _ in range(100):
        start = time.process_time()
        RandomDistortion(per_sample=per_sample)(images, generator=shared)
        times.append(time.process_time() - start)
    assert sorted(times)[50] < 0.03
