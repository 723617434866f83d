import hashlib

import pytest
import torch

from privgen.io.fingerprints import (
    bytes_fingerprint,
    file_fingerprint,
    seed_from,
    settings_fingerprint,
    tensor_fingerprint,
    weights_fingerprint,
)


@pytest.fixture
def network():
    network = torch.nn.Linear(3, 2)
    with torch.no_grad():
        network.weight.copy_(torch.arange(6.0).reshape(2, 3))
        network.bias.zero_()
    return network


def test_files_and_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, example B.1
    assert file_fingerprint(tmp_path / "a") == bytes_fingerprint(b"abc") == expected


def test_what_cannot_be_read(tmp_path):
    assert file_fingerprint(tmp_path / "nothing") == ""
    assert file_fingerprint(tmp_path) == ""


def test_settings():
    first = settings_fingerprint("a", {"x": 1, "y": [2.5, None]})
    assert settings_fingerprint("a", {"y": [2.5, None], "x": 1}) == first
    assert len({first, settings_fingerprint("a"), settings_fingerprint("a", {"x": 1, "y": [2.5]})}) == 3
    assert len(first) == 64


def test_tensors():
    square = torch.arange(6.0).reshape(2, 3)
    assert tensor_fingerprint(square) == hashlib.sha256(square.numpy().tobytes()).hexdigest()
    assert tensor_fingerprint(square.T.contiguous().T.double()) == tensor_fingerprint(square)
    assert tensor_fingerprint(square, square) != tensor_fingerprint(square)
    assert tensor_fingerprint(square + 1e-6) != tensor_fingerprint(square)


def test_weights(network):
    first = weights_fingerprint(network)
    assert weights_fingerprint(network.to(torch.float64)) == first
    assert weights_fingerprint(network, []) != first
    assert weights_fingerprint(network, [1]) != weights_fingerprint(network, [2])
    only_weight = weights_fingerprint(network, prefixes=("weight",))
    with torch.no_grad():
        network.bias[0] += 1
    assert weights_fingerprint(network) != first
    assert weights_fingerprint(network, prefixes=("weight",)) == only_weight


def test_seeds_stay_what_they_were():
    """Records hold results of these seeds: the first eight bytes of a SHA-256, without the lowest bit."""
    assert seed_from(3, "jpeg_50", 7) == int(hashlib.sha256(b"3:jpeg_50:7").hexdigest()[:16], 16) // 2
    assert seed_from(0, "a.png") == 5866156135541576447
    assert len({seed_from(0, "a", 1), seed_from(0, "a", 2), seed_from(1, "a", 1)}) == 3
