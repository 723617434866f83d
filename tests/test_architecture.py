"""Imports point one way, from the command line down to files and images, and never in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest


ROOMS = {"privgen": "privgen", "privgen.attacks": "attacks", "privgen.cli": "cli", "privgen.pipelines": "pipelines"}

LAYERS = (
    ("privgen", "errors", "environment"),
    ("io", "provenance"),
    ("data",),
    ("diffusion", "models", "metrics", "hub"),
    ("watermark", "noise_assignment", "hallucination", "protection"),
    ("attacks",),
    ("pipelines",),
    ("training",),
    ("evaluation",),
    ("webpage",),
    ("cli", "__main__"),
)
"""From the bottom up; rooms of one layer may import each other, as long as no circle of modules arises."""


@pytest.fixture(scope="module")
def imports(root):
    """For each module of privgen, the modules of privgen that it imports, inside functions as well."""
    files = {}
    for package, folder in ROOMS.items():
        for path in (root / folder).rglob("*.py"):
            parts = path.relative_to(root / folder).with_suffix("").parts
            files[".".join([package, *parts]).removesuffix(".__init__")] = path
    return {name: set(_imported(path, files)) - {name} for name, path in files.items()}


def _imported(path, files):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom) and node.module in files:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in files else node.module


def room(module):
    return module.split(".")[1] if "." in module else module


def test_every_room_has_a_layer(imports):
    assert {room(module) for module in imports} == {name for layer in LAYERS for name in layer}


def test_no_arrow_points_up(imports):
    height = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    # The package itself imports its exports lazily, from wherever they are.
    arrows = [(a, b) for a, targets in imports.items() if a != "privgen" for b in targets]
    assert [pair for pair in arrows if height[room(pair[0])] < height[room(pair[1])]] == []


def test_no_circle(imports):
    graph = {module: targets for module, targets in imports.items() if module != "privgen"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1]))
