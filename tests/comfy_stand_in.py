"""A stand-in for ComfyUI, which is on no package index: its interface of nodes, as far as `examples/comfyui` uses it.

The names, parameters and rules are those of `comfy_api.latest` (`comfy_api/latest/_io.py`) and `folder_paths` of
ComfyUI: what is not a parameter there is a TypeError here. `Server` loads a folder of nodes and runs a workflow in
ComfyUI's API format with the checks that ComfyUI makes.
"""

import asyncio
import importlib.util
import inspect
import json
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any


class Input:
    io_type = "*"

    def __init__(self, id, display_name=None, optional=False, tooltip=None, lazy=None, extra_dict=None, raw_link=None):
        self.id, self.optional = id, optional

    def check(self, value):
        """Raises unless the widget may hold the value."""


class WidgetInput(Input):
    type = object

    def __init__(self, id, display_name=None, optional=False, tooltip=None, lazy=None, default=None, socketless=None):
        super().__init__(id, display_name, optional, tooltip, lazy)
        self.default = default
        if default is not None:
            self.check(default)

    def check(self, value):
        assert isinstance(value, self.type), f"{self.id}: {value!r} is no {self.io_type}"


class Output:
    io_type = "*"

    def __init__(self, id=None, display_name=None, tooltip=None, is_output_list=False):
        self.id = id


def a_type(name, input_class=Input):
    """A type of ComfyUI: a class with the classes Input and Output."""
    made_input = type("Input", (input_class,), {"io_type": name})
    return type(name, (), {"Input": made_input, "Output": type("Output", (Output,), {"io_type": name})})


class StringInput(WidgetInput):
    type = str

    def __init__(self, id, display_name=None, optional=False, tooltip=None, multiline=False, default=None):
        super().__init__(id, display_name, optional, tooltip, default=default)


class BooleanInput(WidgetInput):
    type = bool

    def __init__(self, id, display_name=None, optional=False, tooltip=None, lazy=None, default=None):
        super().__init__(id, display_name, optional, tooltip, lazy, default)


class NumberInput(WidgetInput):
    def __init__(
        self,
        id,
        display_name=None,
        optional=False,
        tooltip=None,
        lazy=None,
        default=None,
        min=None,
        max=None,
        step=None,
    ):
        self.min, self.max = min, max
        super().__init__(id, display_name, optional, tooltip, lazy, default)

    def check(self, value):
        super().check(value)
        assert self.min <= value <= self.max, f"{self.id}: {value} is out of range"


class IntInput(NumberInput):
    type = int


class FloatInput(NumberInput):
    type = float


class ComboInput(WidgetInput):
    type = str

    def __init__(self, id, options=None, display_name=None, optional=False, tooltip=None, lazy=None, default=None):
        self.options = options
        super().__init__(id, display_name, optional, tooltip, lazy, default)

    def check(self, value):
        assert value in self.options, f"{self.id}: {value!r} is not in the list {self.options}"


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Input] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    hidden: list[Any] = field(default_factory=list)
    description: str = ""
    search_aliases: list[str] = field(default_factory=list)
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_dev_only: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False

    def validate(self):
        for ids in ([one.id for one in self.inputs], [one.id for one in self.outputs]):
            assert len(set(ids)) == len(ids), f"{self.node_id}: ids are not unique: {ids}"


class Locked(type):
    """ComfyUI runs a copy of the class that cannot be changed."""

    def __setattr__(cls, name, value):
        raise AttributeError(f"Cannot set attribute {name!r} on a class of nodes")


class ComfyNode(metaclass=Locked):
    @classmethod
    def define_schema(cls):
        raise NotImplementedError

    @classmethod
    def execute(cls, **kwargs):
        raise NotImplementedError

    @classmethod
    def fingerprint_inputs(cls, **kwargs):
        return None


class NodeOutput:
    def __init__(self, *args, ui=None, expand=None, block_execution=None):
        self.args, self.ui = args, ui


class ComfyExtension(ABC):
    async def on_load(self):
        """Called before the nodes are listed."""
        return

    @abstractmethod
    async def get_node_list(self): ...


def module(name, **members):
    made = ModuleType(name)
    vars(made).update(members)
    return made


class Server:
    """Loads nodes and runs workflows.

    Args:
        folder: of nodes, as in ComfyUI's custom_nodes.
        output: folder for what nodes save.
        own: functions in the place of ComfyUI's own nodes, by their class_type.
        patch: sets an entry of sys.modules for the time of a test.
    """

    def __init__(self, folder, output, own, patch):
        self.output, self.own = Path(output), own
        types = {"Image": a_type("IMAGE"), "String": a_type("STRING", StringInput)}
        types |= {"Int": a_type("INT", IntInput), "Float": a_type("FLOAT", FloatInput)}
        types |= {"Boolean": a_type("BOOLEAN", BooleanInput), "Combo": a_type("COMBO", ComboInput)}
        io = module("io", Custom=a_type, Schema=Schema, ComfyNode=ComfyNode, NodeOutput=NodeOutput, **types)
        latest = module("comfy_api.latest", io=io, IO=io, ComfyExtension=ComfyExtension)
        patch("comfy_api", module("comfy_api", latest=latest))
        patch("comfy_api.latest", latest)
        paths = {"get_output_directory": lambda: str(self.output), "get_save_image_path": self.save_path}
        patch("folder_paths", module("folder_paths", **paths))
        name = "custom_nodes_privgen"
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
        pack = importlib.util.module_from_spec(spec)
        patch(name, pack)
        patch(f"{name}.nodes", None)
        del sys.modules[f"{name}.nodes"]  # loaded anew, and forgotten after the test
        spec.loader.exec_module(pack)
        self.nodes = asyncio.run(self.load(pack))

    async def load(self, pack):
        entry = pack.comfy_entrypoint()
        extension = await entry if inspect.isawaitable(entry) else entry
        assert isinstance(extension, ComfyExtension)
        await extension.on_load()
        nodes = {node.define_schema().node_id: node for node in await extension.get_node_list()}
        for node in nodes.values():
            schema, parameters = node.define_schema(), inspect.signature(node.execute).parameters
            schema.validate()
            assert [one.id for one in schema.inputs] == list(parameters), f"{schema.node_id}: inputs and parameters"
        return nodes

    def save_path(self, filename_prefix, output_dir, image_width=0, image_height=0):
        folder = Path(output_dir) / Path(filename_prefix).parent
        folder.mkdir(parents=True, exist_ok=True)
        stem = Path(filename_prefix).name
        counters = [int(path.stem.split("_")[-2]) for path in folder.glob(f"{stem}_*_.png")]
        return str(folder), stem, max(counters, default=0) + 1, str(Path(filename_prefix).parent), filename_prefix

    def run(self, workflow):
        """Runs a workflow; returns the `NodeOutput` of each node by its id."""
        done, outputs = {}, {}
        graph = json.loads(workflow) if isinstance(workflow, str) else workflow

        def run_node(number):
            if number not in done:
                done[number] = self.execute(graph[number], lambda source, slot: run_node(source).args[slot], outputs)
            return done[number]

        for number in graph:
            run_node(number)
        return done

    def execute(self, node, value_of, outputs):
        given = {name: value_of(*v) if isinstance(v, list) else v for name, v in node["inputs"].items()}
        if node["class_type"] in self.own:
            return NodeOutput(self.own[node["class_type"]](**given))
        kind = self.nodes[node["class_type"]]
        schema = kind.define_schema()
        for one in schema.inputs:
            assert one.id in given or one.optional, f"{schema.node_id}: the input {one.id} is missing"
            linked = isinstance(node["inputs"].get(one.id), list)
            assert linked or isinstance(one, WidgetInput), f"{schema.node_id}: {one.id} is not connected"
            if not linked:
                one.check(given[one.id])
        kind.fingerprint_inputs(**given)
        result = kind.execute(**given)
        assert len(result.args) == len(schema.outputs), f"{schema.node_id}: values and outputs"
        return result
