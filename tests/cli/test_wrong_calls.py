"""Calls that cannot work: an exit code, one sentence that says what to do, and nothing half-written."""

import pytest
import torch

from privgen.cli.options import pixel_count
from privgen.watermark.key import Key
from privgen.watermark.token import Token


KEYS = [
    (None, "There is no key file mine.key"),
    (b"hello", "mine.key is not a privgen key"),
    (b"\xff\xfe\x00", "mine.key is not a privgen key"),
    (b"{}", "mine.key is not a privgen key"),
    (b'{"format": "privgen-key", "version": 9}', "format version 9"),
    (b'{"format": "privgen-key", "version": 1}', "mine.key is damaged"),
]
"""Contents of a key's file, and what is said of it."""

GENERATE = "generate cat -o cat.png --steps 2"
MARKED = "watermark generate cat -o cat.png --steps 2 --key alice"
EMBED = "watermark embed photos --key alice -o marked"
DETECT = "watermark detect photos --key alice"
ISSUE = "token issue --key alice -o new.safetensors"
OPTIMISE = "token optimise cat --key alice -o new.safetensors --steps 1"
ATTACK = "attack run jpeg=50 photos -o attacked"
PURIFY = "purify photos -o pure"
PROTECT = "protect photos -o safe --method"
STUDY = "evaluate protection --method noise"

USAGE = [
    (f"{GENERATE} -o cats", "cats is no image file to write; end it in one of .png"),
    (f"{GENERATE} -o .", "is no image file to write"),
    (f"{GENERATE} --n 2", "cat.png is a file, and there are 2 images"),
    (f"{GENERATE} --n 0", "--n"),
    (f"{GENERATE} --steps 0", "--steps"),
    (f"{GENERATE} --guidance-scale -1", "--guidance-scale"),
    (f"{GENERATE} --device abacus", "is not a device"),
    ("generate cat", "--output"),
    (f"{GENERATE} --amplify-window 0 500", "give --amplify or --amplify-tangent as well"),
    (f"{GENERATE} --amplify-gate learned", "give --amplify or --amplify-tangent as well"),
    (f"{GENERATE} --amplify 2 --amplify-window 500 10", "500 is above 10; swap them"),
    (f"{GENERATE} --amplify 2 --amplify-gate open", "--amplify-gate"),
    (f"{GENERATE} --amplify 2 --amplify-gate learned", "needs a network with a learned variance"),
    (f"{GENERATE} --reject-hallucinations 0.5", "A fraction of 0.5 of 1 images rejects none or all of them"),
    (f"{GENERATE} --reject-hallucinations 1", "--reject-hallucinations"),
    ("watermark generate cat -o cat.png", "give --key, --token or --object"),
    (f"{MARKED} --carrier pigeon", "'tile', 'token', 'latent'"),
    (f"{MARKED} --carrier token --robust-steps 2", "use them with the carrier latent"),
    (f"{MARKED} --tau 500 --robust-steps 2", "leave tau out"),
    (f"{MARKED} --token alice.safetensors --carrier latent", "A token cannot write with the carrier latent"),
    (f"{MARKED} --token bob.safetensors", "and the key alice is"),
    (f"{EMBED} --max-pixels many", "'many' is not a number of pixels; write one such as 24e6 or 100MP."),
    (f"{DETECT} --max-pixels 0", "'0' is not a number of pixels"),
    (f"{PROTECT} glaze", "'shield', 'shift'"),
    (f"{PROTECT} noise --steps 3", "The method noise does not take --steps"),
    (f"{PROTECT} sds --toward photos/a.png", "The method sds does not take --toward"),
    (f"{PROTECT} advdm --steps 0", "advdm: expected steps >= 1, got 0"),
    (f"{PROTECT} encoder --size 20", "a multiple of 8, got 20"),
    (f"{PROTECT} noise --psnr 5", "--psnr"),
    (f"{PROTECT} noise -o photos", "inputs come from"),
    ("evaluate calibration --n 1", "--n"),
    ("evaluate calibration --keys 0", "--keys"),
    ("evaluate calibration --kind pigeon", "'tile', 'extractor', 'objects'"),
    ("evaluate calibration --images nowhere", "There is no folder nowhere; name one that holds images."),
    (f"{STUDY} --preset huge", "'quick', 'standard', 'full'"),
    (f"{STUDY} --method glaze", "'glaze' is not one of"),
    (f"{STUDY} --adversary gan", "'lora', 'prompt-embeds'"),
    (f"{STUDY} --effort 3", "--effort"),
    (f"{STUDY} --psnr 5", "--psnr"),
    (f"{STUDY} --subject alice.safetensors", "expected at least 3 images of the subject, got 1"),
    (f"{EMBED} -o photos", "inputs come from"),
    (f"{EMBED} -o bad.png", "bad.png is a file"),
    (f"{EMBED} -o new.png", "new.png looks like a file"),
    ("watermark embed keys --key alice -o marked", "holds no images"),
    ("watermark embed photos --key alice", "--output"),
    (f"{EMBED} --payload 4294967296", "--payload"),
    (f"{EMBED} --payload 7 --carrier latent", "A payload is written in a tile; use the carrier tile or tile+latent."),
    (f"{MARKED} --payload 7 --carrier token", "A payload is written in a tile; use the carrier tile or tile+latent."),
    ("watermark embed photos -o marked", "--key"),
    ("watermark embed --key alice -o marked", "IMAGE_OR_FOLDER"),
    (f"{EMBED} --carrier pigeon", "'tile', 'token', 'latent'"),
    (f"{EMBED} --carrier token --robust-steps 1", "use them with the carrier latent"),
    (f"{EMBED} --psnr 5", "20"),
    ("watermark detect photos", "--key"),
    (f"{DETECT} --fpr 0", "--fpr"),
    (f"{DETECT} --fpr 1e-15 --carrier latent", "cannot show a rate below"),
    (f"{DETECT} --device abacus", "is not a device"),
    (f"{DETECT} --seed 1", "--seed"),
    ("watermark detect keys/alice.key --key alice", "Name at least one image"),
    ("token issue -o new.safetensors", "--key"),
    (f"{ISSUE} -o new.pt", "new.pt must end in .safetensors"),
    ("token optimise --key alice -o new.safetensors", "PROMPT"),
    (f"{OPTIMISE} --steps 0", "--steps"),
    (f"{OPTIMISE} --tau 2000", "--tau"),
    (f"{OPTIMISE} -o new.pt", "new.pt must end in .safetensors"),
    (f"{OPTIMISE} --start noise", "--start"),
    (f"{OPTIMISE} --against jpg", "There is no attack 'jpg'; choose from "),
    (f"{OPTIMISE} --against border", "--against border is not a single attack that keeps the size of images"),
    (f"{OPTIMISE} --against jpeg=500", "jpeg: expected a strength in"),
    (f"{OPTIMISE} --init alice.safetensors --vectors 3", "has 2 vectors of 32 numbers, and 3 of 32 are needed"),
    (f"{OPTIMISE} --steps 9 --against regeneration=20,model=MODEL", "use attacks that are differentiable"),
    ("attack run jpg=50 photos -o attacked", "There is no attack 'jpg'; choose from "),
    ("attack run jpeg=500 photos -o attacked", "jpeg: expected a strength in"),
    ("attack run jpeg=50,place photos -o attacked", "expected NAME=STRENGTH"),
    (f"{ATTACK} --marked photos", "got marked"),
    (f"{ATTACK} -o photos", "inputs come from"),
    (f"{PURIFY} --method vae --mode sde", "The method vae does not take --mode."),
    (f"{PURIFY} --t 10 --prompt cat", "The method diffpure does not take --t, --prompt."),
    (f"{PURIFY} --strength 2000", "diffpure: expected a strength in [0, 1000] steps of 1000, got 2000"),
    (f"{PURIFY} --strength 1.5", "expected a whole number"),
    (f"{PURIFY} --method regenerate", "'regenerate' is not one of"),
    ("key new", "NAME"),
    ("key new a/b", "'a/b' cannot name a key"),
    ("key show", "FILE_OR_NAME"),
    ("key nothing", "No such command 'nothing'; choose from"),
    ("key list x", "x"),
]

FAILED = [
    ("watermark detect photos/a.png --key alice --max-pixels 1e3", "allowed; make it smaller, or raise --max-pixels."),
    (f"{GENERATE} --model nowhere", "There is no model 'nowhere'"),
    (f"{GENERATE} -o bad.png", "bad.png exists; choose another path, or pass --overwrite"),
    (f"{MARKED} --token none.safetensors", "The token none.safetensors does not exist."),
    (f"{MARKED} --token bad.png", "The token bad.png cannot be read"),
    (f"{EMBED} --model nowhere", "There is no model 'nowhere'"),
    ("watermark detect bad.png --key alice", "bad.png is not an image in PNG"),
    ("watermark detect none.png --key alice", "none.png"),
    ("watermark detect photos --key none", "none"),
    (f"{ISSUE} --model nowhere", "There is no model 'nowhere'"),
    (f"{ISSUE} -o alice.safetensors", "alice.safetensors exists"),
    (f"{OPTIMISE} -o alice.safetensors", "alice.safetensors exists"),
    (f"{OPTIMISE} --init none.safetensors", "The token none.safetensors does not exist."),
    ("token show none.safetensors", "The token none.safetensors does not exist."),
    ("token show bad.png", "The token bad.png cannot be read"),
    ("attack run averaging_removal photos -o attacked", "needs marked images: give a folder with --marked"),
    ("attack run averaging_removal photos -o attacked --marked nowhere", "There is no folder nowhere"),
    (f"{PURIFY} --model nowhere", "There is no model 'nowhere'"),
    (f"{STUDY} --model nowhere", "There is no model 'nowhere'"),
    (f"{STUDY} --subject nowhere", "There is no nowhere; name a folder"),
    ("key new alice", "exists, and keys are not overwritten; choose another path."),
    ("key show carol", "carol"),
    ("key show bad.png", "bad.png is not a privgen key"),
]


@pytest.fixture
def folder(workshop):
    for name in ("alice", "bob"):
        key = Key.load(workshop / "keys" / f"{name}.key")
        Token(torch.zeros(2, 32), key.key_id).save(workshop / f"{name}.safetensors")
    return workshop


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def call(cli, marked_model):
    """Calls a command written as one line, with the tiny model if it takes one and the line names none."""

    def run(line):
        words = line.replace("MODEL", str(marked_model)).split()
        if "--model" not in words and not line.startswith(("attack", "key", "token show")):
            words += ["--model", marked_model]
        return cli(*words)

    return run


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [(line, code, said) for code, rows in ((2, USAGE), (1, FAILED)) for line, said in rows],
)
def test_one_sentence_and_nothing_written(call, folder, sentences, line, code, said):
    before = contents(folder)
    result = call(line)
    assert result.exit_code == code, result.output
    (sentence,) = sentences(result)
    assert said in sentence
    assert "Traceback" not in result.output
    assert contents(folder) == before


@pytest.mark.parametrize("line", [MARKED, EMBED, DETECT, ISSUE, OPTIMISE])
@pytest.mark.parametrize(("content", "said"), KEYS)
def test_bad_keys(call, folder, sentences, line, content, said):
    if content is not None:
        (folder / "mine.key").write_bytes(content)
    before = contents(folder)
    result = call(line.replace("--key alice", "--key mine.key"))
    assert result.exit_code == 1
    (sentence,) = sentences(result)
    assert said in sentence
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("line", "largest", "count"),
    [(GENERATE, 50, 1), (MARKED, 50, 1), (EMBED, 2000, 2), (ISSUE, 50, 1), (OPTIMISE, 50, 1), (ATTACK, 2000, 2)],
)
def test_full_disk(call, folder, sentences, small_disk, line, largest, count):
    before = contents(folder)
    with small_disk(largest):
        result = call(line)
    assert result.exit_code == 1
    said = [text for text in result.stderr.splitlines() if "was not written: the file is larger than allowed" in text]
    assert len(said) == count, result.output
    assert contents(folder) == before


def test_a_prompt_without_room_for_a_token(cli, folder, marked_model, sentences):
    for words in (
        [
            "watermark",
            "generate",
            "word " * 80,
            "--key",
            "alice",
            "--carrier",
            "token",
            "--steps",
            "2",
            "-o",
            "cat.png",
        ],
        ["token", "optimise", "word " * 80, "--key", "alice", "--steps", "1", "-o", "new.safetensors"],
    ):
        before = contents(folder)
        result = cli(*words, "--model", marked_model)
        assert result.exit_code == 2
        assert "leaves room for 0 vectors" in sentences(result)[0]
        assert contents(folder) == before


def test_numbers_of_pixels():
    texts = ("89478485", "24e6", "100MP", "0.5 mp", "1.5GP")
    assert [pixel_count(text) for text in texts] == [89478485, 24_000_000, 100_000_000, 500_000, 1_500_000_000]
