import json


def test_hallucination(cli, tmp_path):
    options = ("--nfe", 8, "--seeds", 2, "--samples", 100, "--training-steps", 2, "-o", tmp_path / "out")
    result = cli("evaluate", "hallucination", *options, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record == json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"data", "ddim plain", "ddpm learned gate 2 late"} <= set(record["methods"])
    assert (record["nfe"], record["seeds"], record["samples"]) == (8, 2, 100)
    again = cli("evaluate", "hallucination", *options)
    assert (again.exit_code, "results.json exists" in again.stderr) == (1, True)


def test_too_few_seeds(cli):
    assert cli("evaluate", "hallucination", "--seeds", 1).exit_code == 2
