"""The docs say what is true: their code runs, their commands exist, their links lead somewhere, their tables are those
of the records.

`python tests/test_docs.py` (or `make tables`) writes the tables anew.
"""

import doctest
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from PIL import Image

import privgen
from privgen.cli.main import main
from privgen.evaluation.noise_assignment.settings import METHODS, SETTINGS


ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"))
)
RUN = ("README.md", "docs/tutorials/first-mark.md", "docs/tutorials/protect-a-photo.md")
"""Pages whose shell blocks really run; those of the others are parsed."""

OTHER_PROGRAMS = (".", "echo", "eval", "make", "mkdir", "pip", "python3", "sudo")
"""What shell blocks may call beside privgen and this repository's scripts."""

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
REASON = re.compile(r"<!-- not run: (.+?) -->\s*\Z")
TABLE = re.compile(r"(<!-- table: python (.+?) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
INLINE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A block of code in a page.

    Attributes:
        line: of the page, where the code begins.
        language: such as "python".
        code: without the page's indentation.
        reason: why it is not run, from the comment above it; empty if it is.
    """

    line: int
    language: str
    code: str
    reason: str


@cache
def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def blocks_of(page):
    text, blocks = text_of(page), []
    for found in FENCE.finditer(text):
        before = text[: found.start()]
        reason = REASON.search(before)
        code = re.sub(f"^{found[1]}", "", found[3], flags=re.MULTILINE)
        line = before.count("\n") + 1
        blocks.append(Block(line, found[2], code, reason[1] if reason else ""))
    return tuple(blocks)


@cache
def prose_of(page):
    """The page without its blocks of code."""
    return FENCE.sub("", text_of(page))


# Python


@pytest.fixture
def workplace(tmp_path, monkeypatch, photo_files):
    """A folder with a small photograph, a folder of two, and no keys."""
    (tmp_path / "photos").mkdir()
    for name, source in {"photo": photo_files[0], "photos/one": photo_files[1], "photos/two": photo_files[2]}.items():
        image = Image.open(source).convert("RGB")
        image.thumbnail((200, 200))
        image.save(tmp_path / f"{name}.jpg", quality=95)
    monkeypatch.setenv("PRIVGEN_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("PRIVGEN_CREDENTIALS", str(tmp_path / "credentials"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def restored_attacks():
    """What a page registers is forgotten after it."""
    from privgen.attacks import registry

    before = dict(registry._REGISTRY)
    yield
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)


def run_python(block, page, namespace):
    exec(compile("\n" * block.line + block.code, page, "exec"), namespace)


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language in ("python", "bash") for b in blocks_of(p))])
@pytest.mark.usefixtures("workplace", "restored_attacks")
def test_code_runs(page):
    """Python in one namespace; what shell blocks of the pages in `RUN` say, in between."""
    namespace = {"__name__": "docs"}
    for block in blocks_of(page):
        if block.language == "python":
            compile(block.code, page, "exec")
            if not block.reason:
                run_python(block, page, namespace)
        if block.language == "bash":
            for line in commands(block.code):
                check_command(line)
                if page in RUN and not block.reason and line[0] == "privgen":
                    result = CliRunner().invoke(main, line[1:], prog_name="privgen")
                    assert result.exit_code == 0, f"{page}: {shlex.join(line)}: {result.output}"


@pytest.mark.parametrize("name", sorted({*privgen.__all__} - {"PrivgenError", "UsageError", "__version__", "attacks"}))
@pytest.mark.usefixtures("workplace")
def test_examples_of_the_front_door_run(name):
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(privgen, name), name, globs={})
    said = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert result.attempted, f"the docstring of privgen.{name} has no example"
    assert not result.failed, "".join(said)


def test_blocks_are_of_languages_that_are_checked_or_of_none():
    assert {block.language for page in PAGES for block in blocks_of(page)} <= {"python", "bash", "text"}


# Commands


def commands(code):
    """The commands of a shell block, as lists of words, without assignments before and redirections behind."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = next((i for i, word in enumerate(words) if word in ("&&", "|", ";", ">")), len(words))
            command, rest = words[:end], words[end + 1 :]
            while command and re.match(r"[A-Z_]+=", command[0]):
                command = command[1:]
            if command:
                yield command
            words = [] if words[end : end + 1] == [">"] else rest


def check_command(words):
    """Raises unless the program is known, and has this command and these options."""
    program = words[0]
    if program in ("torchrun", "accelerate"):
        module = words.index("-m")
        words = [word for word in words[module + 1 :] if word != "--"]
        program = words[0]
    if program == "privgen":
        parse(main, words[1:], "privgen")
    elif program == "python" and words[1].startswith("benchmarks/"):
        parse(script(words[1]).main, words[2:], words[1])
    elif program == "python" and words[1].startswith("examples/"):
        assert (ROOT / words[1]).is_file(), words[1]
    else:
        assert program in OTHER_PROGRAMS, f"{program} is not a program that docs may call"
        check_extras(words)


def parse(command, words, name, parent=None):
    """Have click parse a command line, without running it."""
    words = list(words)
    if isinstance(command, click.Group) and not words:
        return
    if isinstance(command, click.Group) and not words[0].startswith("-"):
        ctx = click.Context(command, info_name=name, parent=parent)
        inner = command.get_command(ctx, words[0])
        if inner is None:
            raise click.UsageError(f"{ctx.command_path} has no command {words[0]}")
        parse(inner, words[1:], words[0], ctx)
        return
    try:
        command.make_context(name, words, parent=parent)
    except click.exceptions.Exit:  # --help and --version
        pass
    except click.BadParameter as error:
        missing = isinstance(error.param and error.param.type, click.Path) and "does not exist" in error.message
        if not missing:  # files are there only where pages are run
            raise


def check_extras(words):
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        for extra in re.findall(r"^(?:privgen|\.)\[(.+)\]$", word):
            assert set(extra.split(",")) <= set(known), f"{word} names no extra of privgen's"


def test_a_script_of_the_repository_is_the_one_that_is_meant():
    assert script("benchmarks/attacks_table.py").__file__ == str(ROOT / "benchmarks" / "attacks_table.py")


@cache
def script(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def all_options():
    """Every option of every command of privgen and of the scripts in benchmarks."""

    def walk(command):
        yield from (name for param in command.params for name in (*param.opts, *param.secondary_opts))
        if isinstance(command, click.Group):
            ctx = click.Context(command)
            for name in command.list_commands(ctx):
                yield from walk(command.get_command(ctx, name))

    scripts = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("benchmarks/*.py"))]
    mains = [getattr(script(path), "main", None) for path in scripts]
    return {"--help", *(name for one in (main, *mains) if isinstance(one, click.Command) for name in walk(one))}


@pytest.mark.parametrize("page", PAGES)
def test_what_prose_names_exists(page):
    """Commands, options, modules and files in `backquotes`."""
    if page == "CHANGELOG.md":
        pytest.skip("a changelog names what is gone")
    for text in INLINE.findall(prose_of(page)):
        words = text.split()
        if text.startswith(("privgen ", "python benchmarks/", "python examples/")):
            with suppress(click.MissingParameter):
                check_command(shlex.split(text))
        elif words and re.fullmatch(r"--[a-z-]+", words[0]) and words[0] != "--no-deps":
            assert words[0] in all_options(), f"{page}: {text}"
        elif re.fullmatch(r"privgen(\.\w+)+", text):
            resolve(text)
        elif match := re.fullmatch(r"privgen:(\S+)", text):
            assert (ROOT / "privgen" / match[1]).exists(), f"{page}: {text}"
        elif re.fullmatch(r"(privgen|pipelines|attacks|cli|benchmarks|examples|docs|tests)/[\w./-]+", text):
            assert (ROOT / text).exists() or text.startswith("privgen/<") or is_in_a_model(text), f"{page}: {text}"


def is_in_a_model(text):
    return (ROOT / "privgen" / "models" / "mini" / text).exists()


def resolve(name):
    """Import what a dotted name says."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"{name} does not exist")


@pytest.mark.parametrize(
    "line",
    [
        "privgen watermerk embed photo.jpg --key alice -o marked",
        "privgen watermark embed photo.jpg --key alice -o marked --refine 10",
        "privgen watermark detect photo.jpg --key",
        "privgen watermark embed photo.jpg --key alice -o marked --psnr loud",
        "OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m -- privgen evaluate robustness --present full",
        "accelerate launch -m privgen train a-cat",
        "python benchmarks/token_curve.py --nn 3",
    ],
)
def test_a_wrong_command_is_noticed(line):
    (words,) = commands(line)
    with pytest.raises(click.UsageError):
        check_command(words)


def test_a_wrong_program_extra_or_name_is_noticed():
    for wrong in (["wget", "x"], ["pip", "install", "privgen[everything]"]):
        with pytest.raises(AssertionError):
            check_command(wrong)
    with pytest.raises(AttributeError):
        resolve("privgen.watermark.key.Kay")


# Links


@cache
def anchors_of(page):
    """As Markdown's table of contents names its headings."""
    anchors = []
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        ascii_only = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
        anchors.append(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower()))
    return anchors


@pytest.mark.parametrize("page", [*PAGES, "privgen/models/mini/README.md"])
def test_links_lead_somewhere(page):
    for link in LINK.findall(prose_of(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = Path(os.path.normpath((ROOT / page).parent / path)) if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor and not anchor.startswith("privgen."):
            assert anchor in anchors_of(str(target.relative_to(ROOT))), f"{page}: {link}"


def test_the_site_builds(tmp_path):
    """Strictly: no page is left out of the menu, no link or anchor is broken, every name of the API is found."""
    pytest.importorskip("mkdocs", reason="pip install 'privgen[docs]'")
    if not (ROOT / ".types" / "privgen" / "attacks").exists():
        pytest.skip("`make links` links every folder under its import name")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "site" / "reference" / "cli.html").read_text(encoding="utf-8")
    assert "privgen watermark detect" in page
    loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page)
    assert not loaded, "pages load nothing from elsewhere"


# Tables and records


def table_of(command):
    """What the script that a table names prints."""
    path, *arguments = shlex.split(command)
    result = CliRunner().invoke(script(path).main, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(("page", "command"), [(p, t[1]) for p in PAGES for t in TABLE.findall(text_of(p))])
def test_tables_are_those_of_the_records(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    shown = next(found[3] for found in TABLE.finditer(text_of(page)) if found[2] == command)
    assert shown == table_of(command), "run `make tables`"


def test_every_table_script_has_a_table_in_the_docs():
    commands = {found[2].split()[0] for page in PAGES for found in TABLE.finditer(text_of(page))}
    assert commands >= {str(path.relative_to(ROOT)) for path in ROOT.glob("benchmarks/*_table.py")}


def test_the_record_is_of_what_is_measured_now():
    training = json.loads((ROOT / "docs" / "results" / "training.json").read_text())
    settings = {f"{name} {s.sampler}-{n}" for name, s in SETTINGS.items() for n in s.sampling if "scaled" not in name}
    assert training["settings"].keys() == settings
    for row in training["settings"].values():
        assert row["methods"].keys() < METHODS.keys()
        assert row["auto"] in row["methods"]
    assert (training["seeds"], training["options"]["steps"]) == (3, 400)


@pytest.mark.parametrize("name", ["robustness", "training", "hallucination", "calibration", "objects"])
def test_fields_of_records_are_documented(name):
    record = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())
    page = text_of("docs/reference/records.md")
    documented = set(re.findall(r"[\w-]+", " ".join(INLINE.findall(page))))
    fields = set(record) - {"line", "grid", "shapes", "chess"}
    if name == "hallucination":
        fields |= {figure for task in ("grid", "shapes") for figure in record["tasks"][task]["methods"]["ddim plain"]}
        fields |= record["tasks"]["grid"].keys() - {"methods"}
    if name == "robustness":
        fields |= record["attacks"]["jpeg_50"].keys()
    if name == "calibration":
        tile = record["kinds"]["tile"]
        fields |= {*record["kinds"], *tile, *tile["rates"], *tile["rates"]["all"]["1e-3"]}
        fields |= record["bits"]["tile"]["scenes"]["clean"].keys()
    if name == "objects":
        fields |= {figure for kind in ("scenes", "photographs") for found in record[kind].values() for figure in found}
    assert fields <= documented, fields - documented


def write_tables():
    os.chdir(ROOT)
    for page in PAGES:
        text = text_of(page)
        new = TABLE.sub(lambda found: f"{found[1]}{table_of(found[2])}{found[4]}", text)
        if new != text:
            (ROOT / page).write_text(new, encoding="utf-8")
            print(f"{page}: tables written")


if __name__ == "__main__":
    write_tables()
