import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

import privgen


ROOMS = {"privgen": "privgen", "privgen.attacks": "attacks", "privgen.cli": "cli", "privgen.pipelines": "pipelines"}
API = [
    "AmplifiedScheduler",
    "Credentials",
    "Detection",
    "Key",
    "Label",
    "PrivgenError",
    "Protected",
    "Protection",
    "Registry",
    "Seal",
    "UsageError",
    "Watermark",
    "__version__",
    "assign_noise",
    "attacks",
    "load_key",
    "load_pipeline",
]


def test_public_api():
    assert sorted(privgen.__all__) == API
    assert set(API) <= set(dir(privgen))
    for name in API:
        assert getattr(privgen, name) is not None


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'privgen' has no attribute 'embedd'"):
        privgen.embedd  # noqa: B018


def test_import_is_light(python):
    heavy = python("-c", "import sys, privgen; print({'torch', 'diffusers', 'numpy', 'click'} & {*sys.modules})")
    assert heavy.stdout == "set()\n", heavy.stderr


def test_every_package_is_declared(root):
    declared = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(declared) == sorted(packages(root))


def packages(root):
    """Import names of all folders with code in them."""
    for package, room in ROOMS.items():
        for path in (root / room).rglob("__init__.py"):
            yield ".".join([package, *path.parent.relative_to(root / room).parts])


@pytest.fixture(scope="session")
def wheel(root, tmp_path_factory):
    """The wheel, built by way of the source archive."""
    source = tmp_path_factory.mktemp("source") / "privgen"
    names = ["privgen", "attacks", "cli", "pipelines", "pyproject.toml", "README.md", "LICENSE"]
    for name in names:
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(root / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-2000:]
    (path,) = (source / "dist").glob("*.whl")
    return path


def test_wheel_contents(root, wheel):
    names = ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"privgen", f"privgen-{privgen.__version__}.dist-info"}
    assert {f"privgen/{file}" for file in shipped(root)} <= set(names)


def shipped(root):
    """Files that users need, as they lie in the wheel's privgen/."""
    for package, room in ROOMS.items():
        for path in (root / room).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield "/".join([*package.split(".")[1:], path.relative_to(root / room).as_posix()])


@pytest.mark.slow
def test_wheel_runs_where_nothing_else_is(wheel, tmp_path):
    """Its dependencies are those of this environment; privgen itself comes from the wheel alone."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    scripts = home / ("Scripts" if os.name == "nt" else "bin")
    run = lambda *args: subprocess.check_output([scripts / args[0], *args[1:]], text=True, cwd=tmp_path)  # noqa: E731
    site = run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, str(wheel)]
    subprocess.check_call(pip)
    # A path file adds the folder without reading the path files in it, so not the editable install.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    found = run("python", "-c", "import privgen.attacks, privgen.cli, privgen.pipelines as p; print(p.__file__)")
    assert found.startswith(site)
    assert run("python", "-m", "privgen", "--version") == f"privgen {privgen.__version__}\n"
    assert '"torch"' in run("python", "-m", "privgen", "env", "--json")
