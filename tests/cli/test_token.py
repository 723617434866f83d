"""``privgen token``: tokens are issued, learned and shown, and `privgen watermark generate` writes marks with them."""

import json

import pytest
import torch

from privgen.attacks import JPEG, Blur
from privgen.errors import PrivgenError
from privgen.hub import load_extra, load_pipeline
from privgen.io.images import load_image
from privgen.watermark.key import Key
from privgen.watermark.token import Token, issue_token


@pytest.fixture(autouse=True)
def folder(workshop):
    return workshop


@pytest.fixture
def alice(folder):
    return Key.load(folder / "keys" / "alice.key")


@pytest.fixture
def optimise(cli, marked_model):
    """Learns a token on the tiny model in a few steps, and gives its record and the token."""

    def run(name, *words):
        quick = ("--tau", 500, "--steps", 3, "--guidance-scale", 2, "--json")
        call = ("token", "optimise", "a cat", "two dogs", "--key", "alice", "-o", name, "--model", marked_model)
        result = cli(*call, *quick, *words)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout), Token.load(name)

    return run


def test_issue(cli, alice, marked_model, folder):
    result = cli("token", "issue", "--key", "alice", "-o", "alice.safetensors", "--model", marked_model, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "name": f"<privgen-{alice.key_id}>",
        "key_id": alice.key_id,
        "vectors": 2,
        "dim": 32,
        "tau": 401,
        "metadata": {"method": "token_mapper", "base_model": "tiny"},
        "file": "alice.safetensors",
    }
    made, token = issue_token(load_extra("token_mapper", marked_model), alice), Token.load("alice.safetensors")
    assert torch.equal(token.embedding, made.embedding)
    pipe = load_pipeline(marked_model, device="cpu")
    pipe.load_textual_inversion("alice.safetensors")
    assert token.name in pipe.tokenizer.get_vocab()
    content = (folder / "alice.safetensors").read_bytes()
    for hidden in (alice.secret.hex(), "".join(map(str, alice.bits()))):
        assert hidden.encode() not in content


def test_show(cli, alice):
    Token(torch.zeros(3, 32), alice.key_id, 100, metadata={"method": "optimised"}).save("alice.safetensors")
    result = cli("token", "show", "alice.safetensors")
    assert result.exit_code == 0, result.output
    rows = dict(line.rsplit(maxsplit=1) for line in result.stdout.splitlines())
    assert rows["key id"] == alice.key_id
    assert (rows["vectors"], rows["tau"], rows["metadata method"]) == ("3", "100", "optimised")


def test_optimise(optimise, alice):
    record, token = optimise("a.safetensors", "--vectors", 2)
    assert (token.key_id, token.tau, token.vectors) == (alice.key_id, 500, 2)
    assert (record["key_id"], record["steps"], record["file"]) == (alice.key_id, 3, "a.safetensors")
    assert record["loss"] == pytest.approx(100 * record["message_loss"] + 100 * record["latent_loss"], rel=1e-4)
    assert 0 <= record["bit_accuracy"] <= 1
    again, attacked = (optimise(name, "--init", "a.safetensors", *words)[1] for name, words in (
        ("b.safetensors", ("--lr", 1e-3, "--steps", 1)), ("c.safetensors", ("--against", "noise=0.5"))
    ))  # fmt: skip
    assert 0 < (again.embedding - token.embedding).abs().max() <= 1.01e-3
    assert attacked.vectors == 2


def test_every_option_reaches_the_method(cli, alice, marked_model, monkeypatch):
    seen = {}

    def remember(pipe, extractor, key, *, prompts, options, generator, progress):
        seen.update(vars(options), key=key, prompts=prompts, seed=generator.initial_seed())
        raise PrivgenError("That is enough.")

    monkeypatch.setattr("privgen.watermark.write.token_by_gradient.optimise_token", remember)
    Token(torch.ones(3, 32), alice.key_id).save("first.safetensors")
    numbers = {
        "steps": 7, "tau": 300, "vectors": 3, "lr": 0.02, "unrolled_steps": 4, "batch_size": 5, "lambda_w": 6.0,
        "lambda_z": 8.0, "guidance_scale": 2.5, "start": "renoise", "seed": 9,
    }  # fmt: skip
    words = [word for name, value in numbers.items() for word in (f"--{name.replace('_', '-')}", value)]
    words += ["--init", "first.safetensors", "--against", "jpeg=30", "--against", "blur=2", "--model", marked_model]
    result = cli("token", "optimise", "a cat", "a dog", "--key", "alice", "-o", "new.safetensors", *words)
    assert "That is enough." in result.stderr, result.output
    assert {name: seen[name] for name in numbers} == numbers
    assert (seen["key"], seen["prompts"]) == (alice, ("a cat", "a dog"))
    assert torch.equal(seen["init"].embedding, torch.ones(3, 32))
    assert [(choice.at(0.5), choice.probability) for choice in seen["attack"].table] == [
        (JPEG(strength=30), pytest.approx(1 / 3)),
        (Blur(strength=2), pytest.approx(1 / 3)),
    ]


@pytest.mark.parametrize("with_key", [False, True])
def test_generate_with_a_token(cli, alice, marked_model, with_key):
    Token(torch.randn(1, 32, generator=torch.Generator().manual_seed(0)), alice.key_id, 500).save("a.safetensors")
    words = ["a cat", "--steps", "4", "--model", marked_model]
    key = ["--key", "alice"] if with_key else []
    result = cli("watermark", "generate", *words, "--token", "a.safetensors", *key, "-o", "cat.png", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["key_id"], record["carrier"]) == (alice.key_id, "token")
    assert record["key"] == ("alice" if with_key else None)
    assert f"detect cat.png --key {'alice' if with_key else 'KEY'} --model" in result.stderr
    assert cli("generate", *words, "-o", "plain.png").exit_code == 0
    difference = (load_image("cat.png").pixels - load_image("plain.png").pixels).abs()
    assert 0 < difference.mean() < 0.3


def test_another_token_is_other_work(cli, alice, marked_model):
    """A batch that was interrupted goes on with the token that it began with."""
    for number, name in enumerate(("a.safetensors", "b.safetensors")):
        Token(torch.full((1, 32), float(number)), alice.key_id, 500).save(name)
    words = ["watermark", "generate", "a cat", "--steps", "4", "--n", "2", "-o", "cats", "--model", marked_model]
    assert cli(*words, "--token", "a.safetensors").exit_code == 0
    assert cli(*words, "--token", "a.safetensors").stdout.count("skipped") == 2
    result = cli(*words, "--token", "b.safetensors")
    assert result.exit_code == 1
    assert "exists" in result.stderr


def test_tokens_of_mini_write_marks_that_are_read(cli):
    """The mapper's token, as it is and learned further: the whole way, with trained networks."""
    prompt = "a cat on a blue background"
    further = ("--init", "alice.safetensors", "--tau", 75, "--lr", 1e-4, "--steps", 2)
    calls = [
        ("token", "issue", "--key", "alice", "-o", "alice.safetensors"),
        ("token", "optimise", prompt, "--key", "alice", "-o", "more.safetensors", *further),
        ("watermark", "generate", prompt, "--token", "alice.safetensors", "-o", "issued.png"),
        ("watermark", "generate", prompt, "--token", "more.safetensors", "-o", "more.png"),
        ("watermark", "detect", "issued.png", "more.png", "--key", "bob", "--key", "alice"),
    ]
    for call in calls:
        result = cli(*call)
        assert result.exit_code == 0, result.output
    assert [line.split()[1] for line in result.stdout.splitlines()[1:]] == ["alice", "alice"]
