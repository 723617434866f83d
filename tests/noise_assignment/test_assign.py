import pickle

import pytest
import torch
from scipy.optimize import linear_sum_assignment

import privgen
from privgen.noise_assignment.assign import assign_noise, choose_method, noise_permutation


SHAPES = [(32, 7), (32, 3, 8, 8), (32, 4, 2, 6, 6)]


def batch(shape, generator, dtype=torch.float32):
    """Images of that shape, uniform in [-1, 1], and noise."""
    x_0 = torch.rand(shape, generator=generator).mul(2).sub(1)
    return x_0.to(dtype), torch.randn(shape, generator=generator).to(dtype)


def squared_distances(x_0, eps):
    """`(B, B)` in float64, by subtraction."""
    return (x_0.double().flatten(1)[:, None] - eps.double().flatten(1)[None]).square().sum(2)


def rows(noise):
    """The noises as sorted bytes."""
    return sorted(map(bytes, noise.flatten(1).contiguous().view(torch.uint8).numpy()))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_it_can_be_pickled(generator):
    x_0, eps = batch((32, 3, 8, 8), generator)
    assert torch.equal(pickle.loads(pickle.dumps(privgen.assign_noise))(x_0, eps), assign_noise(x_0, eps))


# Linear assignment.


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mean", [0.0, 1.0, 1000.0])
def test_linear_is_the_optimum_of_squared_distances(shape, mean, generator):
    x_0, eps = batch(shape, generator)
    x_0 = x_0 + mean
    _, columns = linear_sum_assignment(squared_distances(x_0, eps).numpy())
    assert torch.equal(noise_permutation(x_0, eps), torch.from_numpy(columns))
    assert torch.equal(assign_noise(x_0, eps, method="linear"), eps[torch.from_numpy(columns)])


def test_linear_is_the_optimum_when_the_solver_starts_warm(generator):
    x_0, eps = batch((300, 3, 8, 8), generator)
    _, columns = linear_sum_assignment(torch.cdist(x_0.flatten(1).double(), eps.flatten(1).double()).square().numpy())
    assert torch.equal(noise_permutation(x_0, eps), torch.from_numpy(columns))


@pytest.mark.parametrize("method", ["linear", "auction"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_permutation_keeps_the_noise_bit_by_bit(method, dtype, generator):
    x_0, eps = batch((48, 3, 8, 8), generator, dtype)
    noise = assign_noise(x_0, eps, method=method)
    assert (noise.dtype, noise.shape) == (eps.dtype, eps.shape)
    assert rows(noise) == rows(eps)


def test_auction_lies_as_near_as_linear(generator):
    x_0, eps = batch((200, 3, 8, 8), generator)
    linear = (x_0 * assign_noise(x_0, eps, method="linear")).sum()
    auction = (x_0 * assign_noise(x_0, eps, method="auction")).sum()
    assert auction == pytest.approx(linear.item(), rel=0.01)


def test_assigning_again_changes_nothing(generator):
    x_0, eps = batch((64, 3, 8, 8), generator)
    once = assign_noise(x_0, eps, method="linear")
    assert torch.equal(assign_noise(x_0, once, method="linear"), once)


@pytest.mark.parametrize("method", ["linear", "auction"])
def test_one_image_keeps_its_noise(method, generator):
    x_0, eps = batch((1, 3, 8, 8), generator)
    noise = assign_noise(x_0, eps, method=method)
    assert torch.equal(noise, eps)
    assert noise.data_ptr() != eps.data_ptr()


def test_equal_images_are_matched(generator):
    eps = torch.randn(300, 3, 8, 8, generator=generator)
    assert rows(assign_noise(torch.ones_like(eps), eps, method="linear")) == rows(eps)


# Nearest of k noises.


def test_knn_takes_the_highest_dot_product_of_given_candidates(generator):
    x_0 = torch.randn(16, 3, 8, 8, generator=generator)
    eps = torch.randn(16, 5, 3, 8, 8, generator=generator)
    best = torch.einsum("bchw,bkchw->bk", x_0, eps).argmax(1)
    for method in ("knn", "auto"):
        assert torch.equal(assign_noise(x_0, eps, method=method), eps[torch.arange(16), best])


def test_knn_counts_the_noise_it_was_given(generator):
    x_0, eps = batch((64, 3, 8, 8), generator)
    noise = assign_noise(x_0, eps, method="knn", candidates=4, generator=seeded(1))
    kept = (noise == eps).flatten(1).all(1).float().mean().item()
    assert 0.05 < kept < 0.5  # 1 in 4
    assert torch.equal(assign_noise(x_0, eps, method="knn", candidates=1), eps)


def test_knn_keeps_the_variance_where_distance_would_shrink_it(generator):
    x_0, eps = batch((1000, 3, 8, 8), generator)
    draw = seeded(1)
    noises = torch.stack([eps, *(torch.randn(eps.shape, generator=draw) for _ in range(63))], dim=1)
    chosen = assign_noise(x_0, eps, method="knn", candidates=64, generator=seeded(1))
    assert torch.equal(chosen, assign_noise(x_0, noises, method="knn"))
    nearest = (x_0[:, None] - noises).flatten(2).norm(dim=2).argmin(1)
    by_distance = noises[torch.arange(1000), nearest]
    # The mean of 192,000 squares of a standard normal has a deviation of 0.0032.
    assert chosen.square().mean().item() == pytest.approx(1, abs=0.03)
    assert by_distance.square().mean().item() < 0.85
    # Relative to the best of 64 normals, 2.34 on average; distance gives part of that away.
    lengths = x_0.flatten(1).norm(dim=1)
    assert ((x_0 * chosen).flatten(1).sum(1) / lengths).mean().item() == pytest.approx(2.34, abs=0.05)
    assert ((x_0 * by_distance).flatten(1).sum(1) / lengths).mean().item() < 1.8


def test_knn_of_one_is_knn_of_many_with_a_generator_each(generator):
    x_0, eps = batch((6, 3, 8, 8), generator)
    together = assign_noise(x_0, eps, method="knn", candidates=8, generator=[seeded(i) for i in range(6)])
    for i in range(6):
        alone = assign_noise(x_0[i : i + 1], eps[i : i + 1], method="knn", candidates=8, generator=seeded(i))
        assert torch.equal(together[i : i + 1], alone)


@pytest.mark.parametrize("candidates", [1, 3])
def test_knn_gives_new_noise(candidates, generator):
    x_0, eps = batch((4, 3, 8, 8), generator)
    for noises in (eps, eps[:, None].expand(-1, candidates, -1, -1, -1)):
        before = noises.clone()
        assign_noise(x_0, noises, method="knn", candidates=candidates, generator=generator).zero_()
        assert torch.equal(noises, before)


# For every method.


@pytest.mark.parametrize("method", ["auto", "linear", "knn", "auction"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_seed_same_noise(method, shape, generator):
    x_0, eps = batch(shape, generator)
    first, second = (assign_noise(x_0, eps, method=method, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("method", ["linear", "knn", "auction"])
def test_inputs_may_have_any_memory_layout(method, generator):
    x_0, eps = batch((32, 3, 8, 8), generator)
    expected = assign_noise(x_0, eps, method=method, generator=seeded())
    scattered = [t.to(memory_format=torch.channels_last) for t in (x_0, eps)]
    strided = [torch.stack([t, t], dim=-1)[..., 0] for t in (x_0, eps)]
    for x, e in (scattered, strided):
        assert not e.is_contiguous()
        assert torch.equal(assign_noise(x, e, method=method, generator=seeded()), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["linear", "knn", "auction"])
def test_half_precision_chooses_as_float32_does(method, dtype, generator):
    x_0 = torch.rand(16, 4, 64, 64, generator=generator).to(dtype)  # all of one sign, as if bright
    eps = torch.randn(16, *([16] if method == "knn" else []), 4, 64, 64, generator=generator).to(dtype)
    half = assign_noise(x_0, eps, method=method)
    assert half.dtype == dtype
    assert torch.equal(half.float(), assign_noise(x_0.float(), eps.float(), method=method))


def test_sums_are_finer_than_half_precision(generator):
    x_0 = torch.ones(1, 65_536).half()  # a bright image
    low = torch.randn(65_536, generator=generator).half() + 0.5
    high = low.clone()
    high[0] += 1
    eps = torch.stack([low, high])[None]
    in_half = (x_0[:, None] * eps).sum(2)
    assert in_half[0, 0] == in_half[0, 1]
    assert torch.equal(assign_noise(x_0, eps, method="knn"), eps[:, 1])


@pytest.mark.parametrize("method", ["linear", "knn", "auction"])
def test_autocast_does_not_lower_the_precision(method, generator):
    x_0, eps = batch((32, 4, 32, 32), generator)
    expected = assign_noise(x_0, eps, method=method, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(assign_noise(x_0, eps, method=method, generator=seeded()), expected)


def test_images_and_noise_may_differ_in_dtype(generator):
    x_0, eps = batch((32, 3, 8, 8), generator)
    expected = assign_noise(x_0.double(), eps.double(), method="linear")
    for x, e in ((x_0.double(), eps), (x_0, eps.double())):
        noise = assign_noise(x, e, method="linear")
        assert noise.dtype == e.dtype
        assert torch.equal(noise.double(), expected)


def test_gradients_flow_to_the_noise_only(generator):
    x_0, eps = (t.requires_grad_() for t in batch((16, 3, 8, 8), generator))
    for method in ("linear", "knn"):
        assign_noise(x_0, eps, method=method, candidates=2, generator=generator).sum().backward()
        assert x_0.grad is None
    assert eps.grad is not None


def test_nothing_random_happens_to_a_permutation(generator):
    before = torch.get_rng_state()
    assign_noise(*batch((16, 3, 8, 8), generator), method="linear")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("noises", "device", "method"),
    [
        (1, "cpu", "linear"),
        (4096, "cpu", "linear"),
        (4097, "cpu", "knn"),
        (1, "cuda:1", "linear"),
        (2047, "cuda", "linear"),
        (2048, torch.device("cuda", 0), "auction"),
        (8193, "cuda", "knn"),
    ],
)
def test_auto_goes_by_size(noises, device, method):
    assert choose_method(noises, device) == method


@pytest.mark.parametrize(("size", "classes", "method"), [(16, 1, "linear"), (32, 1, "knn"), (32, 8, "linear")])
def test_auto_counts_the_noises_an_image_can_get(size, classes, method, generator, monkeypatch):
    monkeypatch.setattr("privgen.noise_assignment.assign.LINEAR_TO", 16)
    x_0, eps = batch((size, 3, 8, 8), generator)
    labels = torch.arange(size) % classes
    auto = assign_noise(x_0, eps, labels=labels, generator=seeded())
    assert torch.equal(auto, assign_noise(x_0, eps, method=method, labels=labels, generator=seeded()))
