from copy import deepcopy

import pytest
import torch
from torch import nn

from privgen.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5), (1, 7)], ids=repr)
def test_singular_values_end_near_one(shape, generator):
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=generator)))
    assert values.min() > 0.6
    assert values.max() < 1.25


def test_singular_vectors_stay(generator):
    u, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(9, 6, generator=generator))
    matrix = u @ torch.diag(torch.tensor([3.0, 2.0, 1.5, 1.0, 0.7, 0.5])) @ v.T
    rotated = u.T @ orthogonalise(matrix) @ v
    torch.testing.assert_close(rotated - torch.diag(rotated.diagonal()), torch.zeros(6, 6), atol=1e-4, rtol=0)


def test_orthogonalising_is_blind_to_scale_and_knows_zero(generator):
    matrix = torch.randn(4, 6, generator=generator)
    torch.testing.assert_close(orthogonalise(1e3 * matrix), orthogonalise(matrix))
    assert torch.equal(orthogonalise(torch.zeros(4, 6)), torch.zeros(4, 6))


def test_a_quadratic_converges(generator):
    """A linear map, with a bias for Adam's half, is found from its values."""
    x, wanted = torch.randn(64, 6, generator=generator), torch.randn(6, 3, generator=generator)
    y = x @ wanted + 1
    weight, bias = nn.Parameter(torch.zeros(6, 3)), nn.Parameter(torch.zeros(3))
    optimizer = Muon([weight, bias], lr=0.1)
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 300)
        optimizer.zero_grad()
        (x @ weight + bias - y).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(weight.detach(), wanted, atol=0.02, rtol=0)
    torch.testing.assert_close(bias.detach(), torch.ones(3), atol=0.02, rtol=0)


def test_updates_have_the_size_of_the_rate(generator):
    """An RMS of about 0.2 for matrices of any shape, and of 1 for the first step of the rest."""
    for shape in [(4, 64), (64, 4), (16, 8, 3, 3), (32,)]:
        p = nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape, generator=generator)
        Muon([p], lr=0.5).step()
        rms = p.detach().square().mean().sqrt().item() / 0.5
        assert rms == pytest.approx(1 if len(shape) == 1 else 0.2, rel=0.35), shape


def test_orthogonalising_in_bfloat16_is_near(generator):
    updates = []
    for dtype in (torch.float32, torch.bfloat16):
        p = nn.Parameter(torch.zeros(24, 16))
        p.grad = torch.randn(24, 16, generator=generator.manual_seed(1))
        Muon([p], lr=1.0, dtype=dtype).step()
        updates.append(p.detach())
    assert updates[1].dtype == torch.float32
    assert not torch.equal(*updates)
    assert torch.cosine_similarity(updates[0].flatten(), updates[1].flatten(), dim=0) > 0.999


def test_weight_decay_is_for_matrices(generator):
    matrix, vector = (nn.Parameter(torch.ones(shape)) for shape in [(3, 3), (3,)])
    for p in (matrix, vector):
        p.grad = torch.zeros_like(p)
    Muon([matrix, vector], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(matrix.detach(), torch.full((3, 3), 0.95))
    assert torch.equal(vector.detach(), torch.ones(3))


def test_parameters_without_a_gradient_stay():
    p = nn.Parameter(torch.ones(3, 3))
    Muon([p], lr=0.5).step()
    assert torch.equal(p.detach(), torch.ones(3, 3))


def test_state_round_trip(generator):
    """An optimiser that takes over another's state makes the same steps."""
    start = [torch.randn(4, 3, 3, 3, generator=generator), torch.randn(4, generator=generator)]
    gradients = [[torch.randn(p.shape, generator=generator) for p in start] for _ in range(6)]

    def steps(parameters, optimizer, chosen):
        for gradient in chosen:
            for p, g in zip(parameters, gradient, strict=True):
                p.grad = g.clone()
            optimizer.step()

    whole = [nn.Parameter(p.clone()) for p in start]
    first = Muon(whole, lr=0.1)
    steps(whole, first, gradients[:3])
    halves = [nn.Parameter(p.detach().clone()) for p in whole]
    second = Muon(halves, lr=0.1)
    second.load_state_dict(deepcopy(first.state_dict()))
    steps(whole, first, gradients[3:])
    steps(halves, second, gradients[3:])
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))


def test_closure(generator):
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    assert p.abs().max() < 1
