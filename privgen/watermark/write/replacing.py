"""Replace a pipeline's call or its autoencoder's decoding for as long as a block lasts."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from diffusers import DiffusionPipeline


Call = Callable[[type[DiffusionPipeline], Any, dict[str, Any]], Any]
"""What is called instead of a pipeline: with the pipeline's own class, the pipeline, and its arguments by name."""

Decode = Callable[..., Any]
"""What is called instead of `vae.decode`: with the autoencoder's own `decode`, then its arguments."""


@contextmanager
def replaced_call(pipe: DiffusionPipeline, function: Call) -> Iterator[None]:
    """Have calls of a pipeline call `function` inside the block; afterwards the pipeline is as before.

    Args:
        pipe: the pipeline.
        function: does what a call shall do, with the help of the class's `__call__`.
    """
    own = type(pipe)

    @wraps(own.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(own, self, bind_call(own, self, args, kwargs))

    # Python looks a call up on the class, so the pipeline gets a class of its own for as long as the block lasts.
    pipe.__class__ = type(own.__name__, (own,), {"__call__": call, "__module__": own.__module__})
    try:
        yield
    finally:
        pipe.__class__ = own


@contextmanager
def replaced_decode(vae: Any, function: Decode) -> Iterator[None]:
    """Have an autoencoder decode with `function` inside the block; afterwards it is as before.

    Args:
        vae: the autoencoder.
        function: gets the autoencoder's `decode`, and the arguments of the call.
    """
    decode, replaced = vae.decode, vae.__dict__.get("decode")

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(decode, *args, **kwargs)

    vae.decode = call
    try:
        yield
    finally:
        if replaced is None:
            del vae.decode
        else:
            vae.decode = replaced


def bind_call(
    pipeline_class: type[DiffusionPipeline], pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a pipeline's call by name, defaults included.

    Args:
        pipeline_class: whose call.
        pipe: the pipeline.
        args: positional arguments.
        kwargs: keyword arguments.

    Raises:
        TypeError: an argument that the pipeline does not know.
    """
    signature = inspect.signature(pipeline_class.__call__)
    bound = signature.bind(pipe, *args, **kwargs)
    bound.apply_defaults()
    call = dict(bound.arguments)
    call.pop("self")
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            call |= call.pop(name)
    return call
