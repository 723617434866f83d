from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privgen.attacks import TRAINING_TABLE, RandomDistortion
from privgen.errors import UsageError
from privgen.training.distortions import REGENERATION, training_distortion
from privgen.training.loop import LoopOptions
from privgen.training.recipes import KINDS, Recipe, differences, dump_recipe, load_recipe, packaged_recipe


SMALL = """
[autoencoder]
channels = [8, 8]
photo_fraction = 0
photos = "here/photos"

[loop]
steps = 4
batch_size = 2
learning_rate = 1e-3
"""


@pytest.fixture
def write(tmp_path):
    """Writes a recipe and gives its path."""

    def to_file(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return to_file


@pytest.mark.parametrize("kind", KINDS)
def test_packaged_recipes_name_every_field(kind):
    recipe = load_recipe(kind)
    given = packaged_recipe(kind).read_text()
    for name, value in recipe.values().items():
        if value is not None and name != "loop.checkpoint_minutes":
            assert f"\n{name.partition('.')[2]} = " in given, name


def test_a_further_packaged_recipe():
    recipe = load_recipe("extractor", "privgen:recipes/extractor-further.toml")
    assert recipe.model.start.is_dir()
    assert recipe.model.model.is_dir()
    assert recipe.model.token_fraction > 0


def test_the_packaged_photographs_are_found():
    assert next(load_recipe("autoencoder").model.photos.iterdir()).is_file()


def test_values_and_defaults(write):
    recipe = load_recipe("autoencoder", write(SMALL))
    assert recipe.kind == "autoencoder"
    assert recipe.model.channels == (8, 8)
    assert recipe.model.photo_fraction == 0
    assert isinstance(recipe.model.photo_fraction, float)
    assert recipe.model.photos == Path("here/photos")
    assert recipe.model.crop == 64
    assert recipe.loop == LoopOptions(steps=4, batch_size=2, learning_rate=1e-3)


@pytest.mark.parametrize("kind", ["extractor", "token-language", "token-mapper"])
def test_samples_follow_from_the_loop(kind, tmp_path):
    recipe = load_recipe(kind, changes=["loop.steps=10", "loop.batch_size=4"])
    assert recipe.model.samples == 40
    assert f"{kind}.samples" not in recipe.values()
    (tmp_path / "written.toml").write_text(dump_recipe(recipe))
    assert load_recipe(kind, tmp_path / "written.toml", ["loop.steps=20"]).model.samples == 80
    with pytest.raises(UsageError, match=f"--set {kind}.samples=7: there is no field 'samples'"):
        load_recipe(kind, changes=[f"{kind}.samples=7"])


@pytest.mark.parametrize("kind", ["extractor", "aligner", "token-mapper"])
def test_the_packaged_distortions(kind):
    """Marks are fixed to the canvas, so that nothing is trained against crops and rotations."""
    recipe = load_recipe(kind).model
    made = training_distortion(recipe.distortions, recipe.distortion_scale)
    names = [choice.attack.name for choice in made.table]
    assert names == list(recipe.distortions)
    assert not {"crop", "rotation"} & set(names)


def test_distortions_are_rows_of_the_table_at_a_scale():
    made = training_distortion(["jpeg", "blur"], 0.5)
    assert made == RandomDistortion((TRAINING_TABLE[0], TRAINING_TABLE[4]), per_sample=True).scaled(0.5)
    assert training_distortion([]) is None


def test_an_attack_that_is_named_more_often_is_drawn_more_often():
    once, thrice = (
        training_distortion(["jpeg", "rinsing"]),
        training_distortion(["rinsing", "jpeg", "rinsing", "rinsing"]),
    )
    assert once.table == (thrice.table[0], *thrice.table[-1:])
    assert thrice.table[1:] == 3 * once.table[1:]


def test_images_are_regenerated_once_to_three_times():
    (row,) = REGENERATION
    drawn = [row.at(place / 99).strength for place in range(100)]
    assert set(drawn) == {1, 2, 3}
    assert all(drawn.count(count) >= 32 for count in (1, 2, 3))


@pytest.mark.parametrize(
    ("names", "scale", "message"),
    [(["jpg"], 1, "trained against jpg; choose from jpeg, crop"), (["jpeg"], 1.5, "a scale from 0 to 1, not 1.5")],
)
def test_distortions_that_do_not_exist(names, scale, message):
    with pytest.raises(UsageError, match=message):
        training_distortion(names, scale)


def test_changes_come_last(write):
    changes = ["loop.steps=100", "autoencoder.channels=[8, 16]", "autoencoder.photos=/some/where"]
    recipe = load_recipe("autoencoder", write(SMALL), [*changes, "autoencoder.decoder_only=true", "loop.steps = 7"])
    assert recipe.loop.steps == 7
    assert recipe.model.channels == (8, 16)
    assert recipe.model.photos == Path("/some/where")
    assert recipe.model.decoder_only is True


def values_of(annotation):
    """Values that a field of this type may have."""
    arguments = [argument for argument in get_args(annotation) if argument is not type(None)]
    if get_origin(annotation) is tuple:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if len(arguments) == 1:
        return st.none() | values_of(arguments[0])
    # Lone surrogates are in no text file, a zero is in no path.
    texts = st.text(st.characters(exclude_categories=["Cs"]))
    paths = texts.filter(lambda text: "\0" not in text and not text.startswith("privgen:")).map(Path)
    numbers = st.integers(-(2**63), 2**63 - 1)
    return {bool: st.booleans(), int: numbers, float: st.floats(allow_nan=False), str: texts, Path: paths}[annotation]


def instances(cls, **fixed):
    """Instances of a dataclass with arbitrary values of its fields."""
    hints = get_type_hints(cls)
    chosen = {field.name: values_of(hints[field.name]) for field in fields(cls) if field.name != "samples"}
    return st.builds(cls, **(chosen | fixed))


CHECKED = {
    "autoencoders": st.lists(values_of(str), min_size=1, max_size=3).map(tuple),
    "encoders_a_step": st.just(1),
    "psnr_db": st.floats(1, 99).map(lambda low: (low, low + 1)),
    "crop": st.integers(2, 2**20).map(lambda n: 16 * n),
    "decode_every": st.integers(1, 2**31),
}
"""Fields of the shield's recipe whose values are checked at once."""


def recipes(kind):
    """Recipes of a kind with arbitrary values of all fields."""
    counts = dict.fromkeys(("steps", "batch_size", "log_every", "preview_every"), st.integers(1, 2**31))
    module, cls, _ = KINDS[kind]
    model = instances(getattr(import_module(module), cls), **(CHECKED if kind == "shield" else {}))
    return st.builds(Recipe, st.just(kind), model, instances(LoopOptions, **counts))


@given(recipe=st.sampled_from(list(KINDS)).flatmap(recipes))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_written_and_read_again(recipe, tmp_path):
    """Whatever the values; None stands for the default, which is None for all fields that may be None."""
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(recipe.kind, tmp_path / "recipe.toml") == recipe


def test_texts_that_toml_escapes_are_read_again(tmp_path):
    texts = ("\x7f", "\x00\x1f", 'a "b" \\c', "line\nline\t", "é \u2028 \U0001f600", "privgen:x", "")
    recipe = load_recipe("extractor")
    recipe = replace(recipe, model=replace(recipe.model, distortions=texts))
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe("extractor", tmp_path / "recipe.toml").model.distortions == texts


@pytest.mark.parametrize("kind", KINDS)
def test_packaged_recipes_are_written_and_read_again(kind, tmp_path):
    recipe = load_recipe(kind)
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    assert load_recipe(kind, tmp_path / "recipe.toml") == recipe


ERRORS = {
    "unknown field": (SMALL + "stepz = 3", [], r"mine.toml, \[loop\]: there is no field 'stepz'; choose from steps, "),
    "missing field": (SMALL.replace("steps = 4", ""), [], r"mine.toml, \[loop\]: steps must be given"),
    "missing table": ("[autoencoder]", [], r"mine.toml, \[loop\]: steps, batch_size, learning_rate must be given"),
    "other table": (SMALL + "[gan]", [], r"a recipe for autoencoder has the tables .autoencoder. and .loop., not gan"),
    "no table": ("autoencoder = 3", [], "has the tables .* not autoencoder"),
    "a text": (SMALL.replace("4", '"4"'), [], r"\[loop\]: steps must be a whole number, not '4'"),
    "a fraction": (SMALL.replace("4", "4.5"), [], "steps must be a whole number, not 4.5"),
    "true": (SMALL.replace("1e-3", "true"), [], "learning_rate must be a number, not True"),
    "no list": (SMALL.replace("[8, 8]", "8"), [], r"\[autoencoder\]: channels must be a list, not 8"),
    "in a list": (SMALL.replace("[8, 8]", "[8, 'a']"), [], "channels must be a whole number, not 'a'"),
    "no path": (SMALL.replace('"here/photos"', "3"), [], "photos must be a text, not 3"),
    "no steps": (SMALL.replace("steps = 4", "steps = 0"), [], r"\[loop\]: steps must be at least 1, not 0"),
    "no TOML": ("[autoencoder", [], "mine.toml is not TOML"),
    "set: unknown": (SMALL, ["loop.stepz=3"], "--set loop.stepz=3: there is no field 'stepz'"),
    "set: table": (SMALL, ["gan.steps=3"], r"--set gan.steps=3: write autoencoder.FIELD=VALUE or loop.FIELD=VALUE"),
    "set: no value": (SMALL, ["loop.steps"], "--set loop.steps: write"),
    "set: type": (SMALL, ["loop.steps=many"], "--set loop.steps=many: steps must be a whole number, not 'many'"),
    "set: range": (SMALL, ["loop.log_every=0"], "--set loop.log_every=0: log_every must be at least 1, not 0"),
}


@pytest.mark.parametrize(("text", "changes", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_name_file_and_field(text, changes, message, write):
    with pytest.raises(UsageError, match=message):
        load_recipe("autoencoder", write(text), changes)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"The recipe .*none.toml cannot be read: No such file"):
        load_recipe("autoencoder", tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="it is not text"):
        load_recipe("autoencoder", tmp_path / "binary.toml")
    with pytest.raises(UsageError, match="'gan' cannot be trained; choose from autoencoder, text-to-image, denoiser"):
        load_recipe("gan")


def test_differences(write):
    old = load_recipe("autoencoder", write(SMALL))
    changes = ["loop.steps=5", "loop.log_every=1", "autoencoder.photos=elsewhere", "autoencoder.crop=32"]
    assert differences(old, load_recipe("autoencoder", write(SMALL), changes)) == [
        "autoencoder.crop: 64 there, 32 now",
        "loop.steps: 4 there, 5 now",
    ]
    assert differences(old, replace(old)) == []
