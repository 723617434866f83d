import json


def test_hallucination(cli, tmp_path):
    options = ("--task", "grid", "--nfe", 12, "--seeds", 2, "--samples", 100, "--training-steps", 2)
    options += ("-o", tmp_path / "out")
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
