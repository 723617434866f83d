"""The nodes. ComfyUI's images are batches of floats: tensors (B, H, W, C) in [0, 1]."""

from functools import cache
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io
from PIL import Image

from privgen import Credentials, Detection, Key, Label, Seal, UsageError, Watermark
from privgen.provenance.credentials import credentials_folder
from privgen.watermark.key import key_folder


PrivgenKey = io.Custom("PRIVGEN_KEY")
CATEGORY = "image/privgen"
PAYLOADS = 2**32
MADE = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia")


@cache
def watermark() -> Watermark:
    """One for all nodes, so that its networks are loaded once."""
    return Watermark.from_pretrained("mini")


def names_in(folder: Path, suffix: str) -> list[str]:
    return sorted(path.stem for path in folder.glob(f"*{suffix}"))


def channels_first(images: torch.Tensor) -> list[torch.Tensor]:
    """The images of a batch, (C, H, W) each."""
    return list(images.clamp(0, 1).movedim(-1, 1))


def detect(image: torch.Tensor, key: Key, search: bool = False) -> Detection:
    found: Detection = watermark().detect(image, key, search=search)
    return found


class PrivgenKeyNode(io.ComfyNode):
    """Names a key. A workflow holds the name alone, so that who gets your workflow does not get your key."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PrivgenKey",
            display_name="Key (privgen)",
            category=CATEGORY,
            description="A key of your folder of keys. Make one with `privgen key new NAME`, then refresh the nodes.",
            inputs=[io.Combo.Input("name", options=names_in(key_folder(), ".key"), tooltip="Whose mark")],
            outputs=[PrivgenKey.Output("key", display_name="key")],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str) -> int:
        """A key file that was replaced is read again."""
        path = key_folder() / f"{name}.key"
        return path.stat().st_mtime_ns if path.exists() else 0

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        return io.NodeOutput(Key.load(key_folder() / f"{name}.key"))


class PrivgenMark(io.ComfyNode):
    """Marks each image of a batch as `Watermark.embed` does."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PrivgenMark",
            display_name="Mark (privgen)",
            category=CATEGORY,
            description="Writes the invisible mark of a key into images. Save them without further changes.",
            search_aliases=["watermark", "invisible watermark"],
            inputs=[
                io.Image.Input("image"),
                PrivgenKey.Input("key"),
                io.Combo.Input(
                    "carrier",
                    options=["tile+latent", "tile"],
                    default="tile+latent",
                    tooltip="tile+latent survives more; tile is faster",
                ),
                io.Float.Input(
                    "psnr", default=42.0, min=30.0, max=50.0, step=0.5, tooltip="Quality in dB; higher is fainter"
                ),
                io.Int.Input(
                    "payload",
                    default=-1,
                    min=-1,
                    max=PAYLOADS - 1,
                    tooltip="A number of yours that the mark carries as well, such as a customer's; -1 for none",
                ),
            ],
            outputs=[io.Image.Output("marked", display_name="image")],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, key: Key, carrier: str, psnr: float, payload: int) -> io.NodeOutput:
        number = None if payload < 0 else payload
        marked = [
            watermark().embed(one, key, carrier=carrier, psnr=psnr, payload=number) for one in channels_first(image)
        ]
        return io.NodeOutput(torch.stack(marked).movedim(1, -1))


class PrivgenDetect(io.ComfyNode):
    """Says whether images carry the mark of a key."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PrivgenDetect",
            display_name="Detect (privgen)",
            category=CATEGORY,
            description="Looks for the mark of a key. Connect the report to Preview as Text.",
            inputs=[
                io.Image.Input("image"),
                PrivgenKey.Input("key"),
                io.Boolean.Input(
                    "search", default=False, tooltip="Also look in crops and in turned or scaled images; slower"
                ),
            ],
            outputs=[
                io.Boolean.Output("detected", display_name="detected", tooltip="Whether all images carry the mark"),
                io.Float.Output("p_value", display_name="p-value", tooltip="The largest of the images"),
                io.String.Output("report", display_name="report", tooltip="One line for each image"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image: torch.Tensor, key: Key, search: bool) -> io.NodeOutput:
        found = [detect(one, key, search) for one in channels_first(image)]
        report = "\n".join(str(one) for one in found)
        detected, p_value = all(one.detected for one in found), max(one.p_value for one in found)
        return io.NodeOutput(detected, p_value, report, ui={"text": (report,)})


class PrivgenSign(io.ComfyNode):
    """Writes marked images as PNG files with a label and Content Credentials, as `Watermark.publish` does."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PrivgenSign",
            display_name="Sign and Save (privgen)",
            category=CATEGORY,
            description="Saves marked images with a label and Content Credentials. The files hold no workflow. "
            "Make credentials with `privgen credentials new NAME`.",
            search_aliases=["C2PA", "Content Credentials"],
            inputs=[
                io.Image.Input("image", tooltip="From Mark"),
                PrivgenKey.Input("key"),
                io.Combo.Input("credentials", options=names_in(credentials_folder(), ".credentials")),
                io.Combo.Input("made", options=list(MADE), default=MADE[0], tooltip="Made by AI, or with AI in part"),
                io.String.Input("provider", default="", tooltip="Who offers the system that made the images"),
                io.Combo.Input(
                    "preset", options=["none", "eu-ai-act", "sb-942"], default="none", tooltip="Whose facts"
                ),
                io.String.Input("filename_prefix", default="privgen/signed"),
            ],
            outputs=[io.String.Output("files", display_name="files", tooltip="One path for each image")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        key: Key,
        credentials: str,
        made: str,
        provider: str,
        preset: str,
        filename_prefix: str,
    ) -> io.NodeOutput:
        signer = Credentials.load(credentials_folder() / f"{credentials}.credentials")
        seal = Seal(signer, Label(made, provider=provider), preset=None if preset == "none" else preset)
        pictures = [_pillow(one) for one in channels_first(image)]
        found = [watermark().detect(picture, key) for picture in pictures]
        for number, one in enumerate(found):
            if not one.detected:  # the signature would name a mark that is not there
                raise UsageError(f"Image {number} does not carry the mark of {key.name}; connect Mark before Sign.")
        height, width = image.shape[1:3]
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        names = [f"{name}_{counter + number:05}_.png" for number in range(len(pictures))]
        for file, picture, one in zip(names, pictures, found, strict=True):
            watermark().publish(picture, Path(folder) / file, key, seal=seal, payload=one.payload, marked=True)
        shown = [{"filename": file, "subfolder": subfolder, "type": "output"} for file in names]
        return io.NodeOutput("\n".join(str(Path(folder) / file) for file in names), ui={"images": shown})


def _pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().to(torch.uint8).movedim(0, -1).cpu().numpy())


class PrivgenExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [PrivgenKeyNode, PrivgenMark, PrivgenDetect, PrivgenSign]


async def comfy_entrypoint() -> PrivgenExtension:
    return PrivgenExtension()
