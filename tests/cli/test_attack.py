import json

import pytest
import torch

from privgen.io.images import load_image, save_image


@pytest.fixture
def folders(tmp_path):
    """Folders of marked, unmarked and other images; the mark is a brighter half."""
    generator = torch.Generator().manual_seed(0)
    for name, count in (("marked", 3), ("unmarked", 2), ("others", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            image = 0.3 + 0.2 * torch.rand(3, 20, 30, generator=generator)
            image[:, :, :15] += 0.2 * (name == "marked")
            save_image(image, tmp_path / name / f"{i}.png")
    return tmp_path


def test_collected_images_are_given_as_folders(cli, folders):
    given = ("--marked", folders / "marked", "--unmarked", folders / "unmarked")
    result = cli("attack", "run", "averaging_forgery", folders / "others", *given, "-o", folders / "out", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["done"], record["failed"]) == (1, 0)
    assert record["attack"].startswith("AveragingForgery(strength=1, marked=marked_3_")
    before, after = (load_image(folders / name / "0.png").pixels for name in ("others", "out"))
    change = (after - before).mean((0, 1))
    assert change[:12] == pytest.approx([0.2] * 12, abs=0.03)
    assert change[18:] == pytest.approx([0] * 12, abs=0.03)
