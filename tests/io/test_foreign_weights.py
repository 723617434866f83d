"""Weights of others: only tensors are read, whatever a file holds."""

import pytest
import torch
from safetensors.torch import save_file

from privgen.errors import PrivgenError
from privgen.io.foreign_weights import read_packaged, read_weights


def test_safetensors_and_state_dicts_give_the_same(tmp_path):
    weights = {"a": torch.rand(2, 3), "b": torch.arange(4)}
    save_file(weights, tmp_path / "w.safetensors")
    torch.save(weights, tmp_path / "w.pth.tar")
    for name in ("w.safetensors", "w.pth.tar"):
        found = read_weights(tmp_path / name)
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[key], weights[key]) for key in weights)


def test_files_that_hold_code_or_nothing_are_refused(tmp_path):
    (tmp_path / "code.pth").write_bytes(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.")
    (tmp_path / "short.safetensors").write_bytes(b"12345678")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("code.pth", "short.safetensors", "absent.safetensors"):
        with pytest.raises(PrivgenError, match="cannot be read"):
            read_weights(tmp_path / name)
    with pytest.raises(PrivgenError, match="does not hold weights by name"):
        read_weights(tmp_path / "list.pth")


def test_a_missing_package_is_named():
    with pytest.raises(PrivgenError, match="of the package absent_package are not installed; install it"):
        read_packaged("absent_package", "w.pth", "install it")
