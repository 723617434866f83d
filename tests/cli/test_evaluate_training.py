from privgen.cli.evaluate_training import _METHODS
from privgen.evaluation.noise_assignment.settings import METHODS, VANILLA, RunOptions


def test_missing_data_is_one_sentence(cli, tmp_path):
    result = cli("evaluate", "training", "--data", "fashion", "--fashion", tmp_path)
    assert result.exit_code == 1
    assert "There is no Fashion-MNIST" in result.stderr
    assert "dataset-fashion-mnist" in result.stderr
    assert "Traceback" not in result.output


def test_an_evaluation_is_not_overwritten(cli, tmp_path):
    (tmp_path / "results.json").write_text("{}")
    result = cli("evaluate", "training", "-o", tmp_path)
    assert result.exit_code == 1
    assert "results.json exists" in result.stderr


def test_nothing_to_compare(cli):
    result = cli("evaluate", "training", "--data", "fashion", "--method", "within-label")
    assert result.exit_code == 2
    assert "nothing to compare" in result.stderr


def test_the_command_offers_every_method_and_the_defaults_of_the_options(cli):
    from privgen.cli.evaluate_training import training

    assert {VANILLA, *_METHODS} == set(METHODS)
    defaults = {parameter.name: parameter.default for parameter in training.params}
    options = RunOptions()
    assert {name: defaults[name] for name in ("steps", "batch_size", "samples", "dtype")} == {
        name: getattr(options, name) for name in ("steps", "batch_size", "samples", "dtype")
    }
