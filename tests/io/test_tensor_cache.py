import pytest
import torch
from safetensors.torch import save_file

from privgen.errors import PrivgenError
from privgen.io.tensor_cache import load_or_make, load_tensors


class Maker:
    """Makes other tensors each time, and counts."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        square = torch.arange(6.0).reshape(2, 3) + self.calls
        return {"turned": square.T, "learnt": square.requires_grad_()}


@pytest.fixture
def make():
    return Maker()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "a.safetensors"


def test_made_once(path, make):
    first = load_or_make(path, "f", make, "squares")
    again = load_or_make(path, "f", make, "squares")
    assert make.calls == 1
    assert first.keys() == again.keys() == {"turned", "learnt"}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not first["learnt"].requires_grad
    assert torch.equal(load_tensors(path, "squares")["turned"], first["turned"])


def test_nothing_is_kept_without_a_path(make):
    load_or_make(None, "f", make, "squares")
    load_or_make(None, "f", make, "squares")
    assert make.calls == 2


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: None, r"a\.safetensors holds squares of other networks or other settings; delete the file to"),
        (lambda path: save_file({"turned": torch.zeros(1)}, path), "holds squares of other networks"),
        (lambda path: path.write_bytes(path.read_bytes()[:20]), r"cannot be read as squares \(.*\); delete the file"),
        (lambda path: path.write_bytes(b""), "cannot be read as squares"),
    ],
)
def test_what_is_not_wanted_is_refused_or_replaced(path, make, replace, damage, message):
    load_or_make(path, "f", make, "squares")
    damage(path)
    if replace:
        made = load_or_make(path, "g", make, "squares", replace=True)
        assert make.calls == 2
        assert torch.equal(load_tensors(path, "squares", "g")["turned"], made["turned"])
    else:
        with pytest.raises(PrivgenError, match=message):
            load_or_make(path, "g", make, "squares")
        assert make.calls == 1


def test_a_missing_file(path):
    with pytest.raises(PrivgenError, match="cannot be read as squares"):
        load_tensors(path, "squares")
