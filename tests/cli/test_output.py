import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from privgen.cli.output import echo, to_json


@dataclass(frozen=True)
class Found:
    key: str
    p_value: float
    bits: tuple[int, ...]
    where: Path | None = None


def test_json_keeps_values(capsys):
    found = Found("a", 1e-9, (1, 0), Path("x.png"))
    echo({"results": [found]}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "results": [{"key": "a", "p_value": 1e-9, "bits": [1, 0], "where": "x.png"}]
    }


def test_json_of_numbers():
    given = {"nan": float("nan"), "inf": np.float64("inf"), "half": np.float32(0.5), "tensor": torch.ones(2)}
    assert to_json(given) == {"nan": None, "inf": None, "half": 0.5, "tensor": [1.0, 1.0]}
    assert to_json(True) is True
    assert to_json(torch.float16) == "torch.float16"


def test_record_for_people(capsys):
    echo({"found": True, "clean": {"p_value": 0.12345}, "attacked": {"p_value": None}})
    assert capsys.readouterr().out == "found             yes\nclean p value     0.1235\nattacked p value  -\n"


def test_table_for_people(capsys):
    echo([Found("a", 0.5, (1, 0)), Found("longer", 1e-12, ())])
    assert capsys.readouterr().out.splitlines() == [
        "key     p value  bits  where",
        "a       0.5      1, 0  -",
        "longer  1e-12    -     -",
    ]


def test_nothing(capsys):
    echo([])
    echo([], as_json=True)
    assert capsys.readouterr().out == "\n[]\n"
