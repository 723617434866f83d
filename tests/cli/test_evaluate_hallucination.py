import json

import pytest


def test_hallucination(cli, tmp_path):
    options = ("--task", "grid", "--nfe", 12, "--seeds", 2, "--samples", 100, "--training-steps", 2)
    options += ("--timed-steps", 4, "-o", tmp_path / "out")
    result = cli("evaluate", "hallucination", *options, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record == json.loads((tmp_path / "out" / "results.json").read_text())
    grid = record["tasks"]["grid"]
    assert {"data", "ddim plain", "ddpm learned gate 2 late"} <= set(grid["methods"])
    assert (grid["nfe"], grid["seeds"], grid["samples"]) == (12, 2, 100)
    assert {"grid", "detector", "amplify_step_ratio", "variance_step_ratio", "vsm"} <= set(record)
    again = cli("evaluate", "hallucination", *options)
    assert (again.exit_code, "results.json exists" in again.stderr) == (1, True)


def test_too_few_seeds(cli):
    assert cli("evaluate", "hallucination", "--seeds", 1).exit_code == 2


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(launch, tmp_path):
    options = ("--task", "line", "--nfe", 12, "--seeds", 3, "--samples", 50, "--training-steps", 2, "--json")
    one, two = (launch(n, "evaluate", "hallucination", *options, "-o", tmp_path / str(n)) for n in (1, 2))
    assert two[1] == ""  # the second process prints nothing
    first, both = json.loads(one[0]), json.loads(two[0])
    assert first["tasks"] == both["tasks"]
    assert {path.name for path in (tmp_path / "2").glob("*.png")} == {"line-samples.png", "line-fractions.png"}
    # The second process has had the second seed.
    seeds = {json.loads(line)["seed"] for line in (tmp_path / "2" / "rows-1.jsonl").read_text().splitlines()}
    assert seeds == {1}
