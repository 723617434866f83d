"""The main job, end to end: mark generated images and photographs, then detect the marks.

Run by `make demo`. Everything is written to out/demo; out/demo/demo.png shows it at one look.
"""

import shutil
from importlib.resources import files
from pathlib import Path

from PIL import Image

from privgen.data.sheets import contact_sheet
from privgen.io.images import load_image, to_pil
from privgen.io.pixels import resize
from privgen.pipelines.generation import generate_files
from privgen.watermark.key import Key
from privgen.watermark.read.detect_files import DetectedFile, detect_files
from privgen.watermark.write.embed_files import embed_files


OUT = Path("out/demo")
PROMPTS = (
    "a rocket on a blue background",
    "a hamburger on a gray background",
    "a car and a guitar on a yellow background",
)
PHOTOGRAPHS = 3


def main() -> None:
    """Make keys, images and marks, detect them, and draw the page."""
    shutil.rmtree(OUT, ignore_errors=True)
    alice, mallory = Key.new("alice"), Key.new("mallory")
    alice.save(OUT / "alice.key")
    pairs = generated(alice) + photographs(alice)
    found = detect_files([path for pair in pairs for path in pair], [alice, mallory])
    by_file = {Path(result.file): result for result in found}
    for result in found:
        print(f"{result.file}: {verdict(result)}")
    sheet(pairs, by_file).save(OUT / "demo.png")
    marks = sum(by_file[marked].detected for _, marked in pairs)
    false_alarms = sum(by_file[plain].detected for plain, _ in pairs)
    print(f"{marks} of {len(pairs)} marks found, {false_alarms} of {len(pairs)} unmarked images called marked.")


def generated(key: Key) -> list[tuple[Path, Path]]:
    """Images of the same prompt and seed, plain and marked."""
    pairs = []
    for i, prompt in enumerate(PROMPTS):
        plain, marked = OUT / f"generated-{i}.png", OUT / f"generated-{i}-marked.png"
        generate_files(prompt, plain, seed=i)
        generate_files(prompt, marked, seed=i, key=key)
        pairs.append((plain, marked))
    return pairs


def photographs(key: Key) -> list[tuple[Path, Path]]:
    """Photographs and their marked copies, at their own size."""
    folder = Path(str(files("privgen.data") / "photos" / "heldout"))
    sources = sorted(folder.glob("*.jpg"))[:: len(list(folder.glob("*.jpg"))) // PHOTOGRAPHS][:PHOTOGRAPHS]
    result = embed_files(sources, OUT / "photographs", key)
    return [(Path(file.source), Path(str(file.output))) for file in result.files]


def verdict(result: DetectedFile) -> str:
    """What detection says, in one line."""
    said = f"{result.matches} of {result.n_bits} bits of {result.key}, p = {result.p_adjusted:.1g}"
    return f"carries the mark of {result.key} ({said})" if result.detected else f"no mark ({said})"


def sheet(pairs: list[tuple[Path, Path]], found: dict[Path, DetectedFile]) -> Image.Image:
    """Rows of plain, marked, and difference."""
    pictures, captions = [], []
    for plain, marked in pairs:
        a, b = (resize(load_image(path).pixels[None], (256, 256))[0].clamp(0, 1) for path in (plain, marked))
        pictures += [to_pil(a), to_pil(b), to_pil((0.5 + 10 * (b - a)).clamp(0, 1))]
        captions += [verdict(found[plain]), verdict(found[marked]), "difference x 10"]
    return contact_sheet(pictures, captions, columns=6)


if __name__ == "__main__":
    main()
