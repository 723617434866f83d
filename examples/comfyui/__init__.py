"""Nodes of privgen for ComfyUI: mark images, detect marks, sign files. See README.md beside this file."""

from .nodes import comfy_entrypoint


__all__ = ["comfy_entrypoint"]
