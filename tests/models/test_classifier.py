import numpy as np
import pytest
import torch

from privgen.data.patterns import PATTERNS
from privgen.data.scenes import COLOURS, NOUNS, Placed, SceneSpec, draw_scene, sample_spec
from privgen.errors import PrivgenError, UsageError
from privgen.metrics.scenes import classified_right, judge, load_classifier
from privgen.models.classifier import SceneClassifier, SceneLogits
from privgen.training.mini.classifier import ClassifierRecipe, ClassifierTask


SMALL = ClassifierRecipe(channels=(8, 8))


@pytest.fixture(scope="module")
def classifier():
    return ClassifierTask(SMALL, 0).classifier.eval()


class Oracle:
    """Says what it was made to say, whatever it sees."""

    config = SceneClassifier((8,), 128).config
    device = "cpu"

    def __init__(self, *answers):
        self.answers = list(answers)

    def __call__(self, images):
        assert images.shape[1:] == (3, 128, 128)
        mine, self.answers = self.answers[: len(images)], self.answers[len(images) :]
        nouns = torch.full((len(mine), len(NOUNS)), -5.0)
        colour, pattern = torch.zeros(len(mine), len(COLOURS)), torch.zeros(len(mine), len(PATTERNS) + 1)
        for i, (scores, c, p) in enumerate(mine):
            for noun, score in scores.items():
                nouns[i, NOUNS.index(noun)] = score
            colour[i, list(COLOURS).index(c)] = 1
            pattern[i, PATTERNS.index(p) if p else len(PATTERNS)] = 1
        return SceneLogits(nouns, colour, pattern)


def spec(nouns, colour="red", pattern=None):
    return SceneSpec(tuple(Placed(noun, 0.5, 0.5, 0.5) for noun in nouns.split()), colour, pattern)


def test_shapes_and_labels(classifier):
    said = classifier(torch.rand(3, 3, 128, 128))
    assert said.nouns.shape == (3, 24)
    assert said.colour.shape == (3, 8)
    assert said.pattern.shape == (3, 13)
    assert tuple(classifier.config.nouns) == NOUNS


def test_a_picture_is_judged_by_itself(classifier, generator):
    images = torch.rand(4, 3, 128, 128, generator=generator)
    together = classifier(images).nouns
    torch.testing.assert_close(together[2:3], classifier(images[2:3]).nouns, atol=1e-4, rtol=1e-4)


def test_saved_and_loaded(classifier, tmp_path):
    classifier.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    loaded = load_classifier(tmp_path)
    assert not loaded.training
    images = torch.rand(2, 3, 128, 128)
    torch.testing.assert_close(loaded(images).nouns, classifier(images).nouns, atol=1e-5, rtol=1e-4)


def test_no_classifier(tmp_path):
    with pytest.raises(PrivgenError, match="holds no classifier of scenes; train one with `privgen train classifier"):
        load_classifier(tmp_path)


JUDGEMENTS = [
    # asked, seen: objects_right, exact, colour_right, pattern_right
    (spec("cat"), ({"cat": 3}, "red", None), (True, True, True, True)),
    (spec("cat"), ({"cat": 3, "car": 1}, "red", None), (True, False, True, True)),
    (spec("cat"), ({"cat": 1, "car": 3}, "red", None), (False, False, True, True)),
    (spec("cat"), ({"cat": -1}, "red", None), (False, False, True, True)),
    (spec("cat car"), ({"car": 3, "cat": 1}, "blue", None), (True, True, False, True)),
    (spec("cat car"), ({"car": 3, "cat": -1}, "red", None), (False, False, True, True)),
    (spec("cat car"), ({"car": 3, "clock": 2, "cat": 1}, "red", None), (False, False, True, True)),
    (spec("cat", pattern="fine dots"), ({"cat": 3}, "red", "fine dots"), (True, True, True, True)),
    (spec("cat", pattern="fine dots"), ({"cat": 3}, "red", "coarse dots"), (True, True, True, False)),
    (spec("cat", pattern="fine dots"), ({"cat": 3}, "red", None), (True, True, True, False)),
    (spec("cat"), ({"cat": 3}, "red", "fine dots"), (True, True, True, False)),
]


@pytest.mark.parametrize(("asked", "seen", "right"), JUDGEMENTS)
def test_judgements(asked, seen, right):
    (said,) = judge(torch.rand(1, 3, 128, 128), [asked], Oracle(seen))
    assert (said.objects_right, said.exact, said.colour_right, said.pattern_right) == right
    assert list(said.probabilities) == sorted(said.probabilities, reverse=True)


def test_a_judgement_in_words():
    seen = ({"cat": 5, "car": 1}, "red", "fine dots")
    assert str(*judge(torch.rand(1, 3, 64, 64), [spec("cat")], Oracle(seen))) == "cat 0.99, car 0.73 on red, fine dots"
    assert str(*judge(torch.rand(1, 3, 64, 64), [spec("cat")], Oracle(({}, "red", None)))) == "nothing on red, plain"


def test_batches_of_judgements():
    seen = [({noun: 3}, "red", None) for noun in NOUNS[:5]]
    said = judge(torch.rand(5, 3, 128, 128), [spec(noun) for noun in NOUNS[:5]], Oracle(*seen), batch_size=2)
    assert [one.found for one in said] == [(noun,) for noun in NOUNS[:5]]
    assert judge(torch.rand(0, 3, 128, 128), [], Oracle()) == []


def test_what_cannot_be_judged(classifier):
    with pytest.raises(ValueError, match="expected one spec for each of a batch of images"):
        judge(torch.rand(2, 3, 128, 128), [spec("cat")], classifier)
    with pytest.raises(ValueError, match="expected objects that the classifier knows, got fox, owl"):
        judge(torch.rand(1, 3, 128, 128), [spec("owl fox")], classifier)


def test_accuracy_counts_exact_sets():
    specs = [sample_spec(7 + i) for i in range(4)]
    seen = [({placed.noun: 3 for placed in one.objects}, "red", None) for one in specs]
    seen[1] = ({**seen[1][0], "clock": -1, "teapot": 4}, "red", None)
    right = classified_right(Oracle(*seen), 4, 7)
    assert (sum(right), len(right)) == (3, 4)


# Training


def test_samples_depend_on_their_number_alone():
    task = ClassifierTask(SMALL, 0)
    whole, half = task.batch([4, 5, 6, 7]), task.batch([6, 7])
    for name, values in half.items():
        torch.testing.assert_close(whole[name][2:], values, atol=1e-6, rtol=0)
    assert torch.equal(task.batch([4, 5])["pixels"], ClassifierTask(SMALL, 0).batch([4, 5])["pixels"])
    assert not torch.equal(task.batch([4])["pixels"], ClassifierTask(SMALL, 1).batch([4])["pixels"])


def test_spoilt_objects_are_not_there():
    pixels = ClassifierTask(ClassifierRecipe(channels=(8,), spoilt=1), 0).batch(range(8))
    assert pixels["nouns"].sum() == 0
    whole = ClassifierTask(ClassifierRecipe(channels=(8,), spoilt=0, empty=0), 0).batch(range(8))
    assert whole["nouns"].sum(1).min() >= 1
    assert ClassifierTask(ClassifierRecipe(channels=(8,), empty=1), 0).batch(range(8))["nouns"].sum() == 0


def test_without_flaws_the_scene_itself_is_seen():
    recipe = ClassifierRecipe(channels=(8,), spoilt=0, empty=0, bend=0, shift=0, zoom=0, gain=0, blur=0, noise=0)
    batch = ClassifierTask(recipe, 3).batch([11])
    seed = int(np.random.Generator(np.random.PCG64([3, 11])).integers(2_000_000_000))
    scene = draw_scene(seed)
    torch.testing.assert_close(batch["pixels"][0], torch.from_numpy(scene.pixels), atol=1e-3, rtol=0)
    names = {NOUNS[i] for i in batch["nouns"][0].nonzero()[:, 0]}
    assert names == {placed.noun for placed in scene.spec.objects}
    assert list(COLOURS)[batch["colour"][0]] == scene.spec.colour
    assert [*PATTERNS, None][batch["pattern"][0]] == scene.spec.pattern


def test_the_loss_falls():
    task = ClassifierTask(SMALL, 0)
    batch = task.batch(range(16))
    optimizer = torch.optim.Adam(task.parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = task(batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_pictures_may_go_through_an_autoencoder(tiny, tmp_path):
    tiny.tiny_vae().save_pretrained(tmp_path)
    recipe = ClassifierRecipe(channels=(8,), vae_fraction=0.5, vae=tmp_path)
    task = ClassifierTask(recipe, 0)
    batch = task.batch(range(8))
    assert 0 < batch["decoded"].sum() < 8
    changed = (task.seen(batch) != batch["pixels"]).flatten(1).any(1)
    assert changed.tolist() == batch["decoded"].tolist()
    task(batch)["loss"].backward()
    assert all(p.grad is None for p in task.vae.parameters())
    with pytest.raises(UsageError, match=r"vae_fraction is 0.5, but classifier.vae names no autoencoder; set it"):
        ClassifierTask(ClassifierRecipe(vae_fraction=0.5), 0)


def test_preview_and_export(tmp_path):
    task = ClassifierTask(ClassifierRecipe(size=64, channels=(8, 8)), 0)
    assert 8 * 64 < task.preview().width < 8 * 128
    assert task.batch([0])["pixels"].shape == (1, 3, 64, 64)
    task.export(tmp_path)
    config = load_classifier(tmp_path / "classifier").config
    assert (list(config.channels), config.sample_size) == ([8, 8], 64)
