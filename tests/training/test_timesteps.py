import pytest
import torch

from privgen.training.timesteps import even_times, golden_times


def test_even_times_are_shifted_together(generator):
    one, other = even_times(8, generator), even_times(8, generator)
    torch.testing.assert_close(one.diff(), torch.full((7,), 1 / 8))
    assert 0 <= float(one[0]) < 1 / 8
    assert float(one[0]) != float(other[0])
    assert all(float(even_times(3, generator)[-1]) < 1 for _ in range(100))


@pytest.mark.parametrize("first", [0, 1000, 10**6])
def test_successive_samples_cover_all_times(first):
    """The largest gap between n successive multiples of the golden ratio is below 3 / n, wherever they begin."""
    times = golden_times(range(first, first + 21), seed=4).sort().values
    gaps = torch.cat([times.diff(), times[:1] + 1 - times[-1:]])
    assert 0 <= float(times[0]) <= float(times[-1]) < 1
    assert float(gaps.max()) < 3 / 21


def test_a_time_depends_on_its_sample_and_the_seed_alone():
    assert golden_times([7], 1)[0] == golden_times([3, 7], 1)[1]
    assert golden_times([7], 2)[0] != golden_times([7], 1)[0]
