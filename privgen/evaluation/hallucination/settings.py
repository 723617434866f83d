"""The sampling methods and the detector of each task. They were chosen on seeds that no report uses."""

from collections.abc import Iterable, Mapping

from privgen.evaluation.hallucination.methods import SAMPLERS, Sampler, SamplingMethod
from privgen.hallucination.amplification import Amplification, Window
from privgen.hallucination.detector import HallucinationDetector


Variant = tuple[str, Amplification | None, float]
"""Loss, amplification and rejected fraction of a method."""
LATE: Window = (0.0, 100.0)
"""Timesteps at which a sample is either near a mode or between two. On the grid, amplification helps only there."""
LOW: Window = (0.0, 400.0)
"""The timesteps "below 400", for images. Amplified earlier, images had more wrong in them than plain ones."""
UNDECIDED: Window = (200.0, 600.0)
"""Timesteps at which a model decides what an image shows. Later it decides only what edges look like, and amplifying
there leaves shapes and squares empty."""

_MIXTURE: Mapping[str, Variant] = {
    "plain": ("simple", None, 0.0),
    "gamma 1.1": ("simple", Amplification(1.1), 0.0),
    "gamma 1.3 late": ("simple", Amplification(1.3, window=LATE), 0.0),
    "gamma 1.6 late": ("simple", Amplification(1.6, window=LATE), 0.0),
    "running variance gate 2 late": ("simple", Amplification(2.0, gate="running_variance", window=LATE), 0.0),
    "tangent 1.25 late": ("simple", Amplification(eta=1.25, window=LATE), 0.0),
    "reject 0.1": ("simple", None, 0.1),
    "reject 0.2": ("simple", None, 0.2),
    "gamma 1.3 late, reject 0.1": ("simple", Amplification(1.3, window=LATE), 0.1),
    "vsm loss": ("vsm", None, 0.0),
    "learned gate 2 late": ("precision", Amplification(2.0, gate="learned", window=LATE), 0.0),
    "precision penalty": ("precision", None, 0.0),
}
_SHAPES: Mapping[str, Variant] = {
    "plain": ("simple", None, 0.0),
    "gamma 1.3 below 400": ("simple", Amplification(1.3, window=LOW), 0.0),
    "running variance gate 1.3 below 400": ("simple", Amplification(1.3, gate="running_variance", window=LOW), 0.0),
    "tangent 1.25": ("simple", Amplification(eta=1.25), 0.0),
    "reject 0.1": ("simple", None, 0.1),
    "reject 0.2": ("simple", None, 0.2),
    "vsm loss": ("vsm", None, 0.0),
    "precision penalty": ("precision", None, 0.0),
    "precision penalty, reject 0.1": ("precision", None, 0.1),
}
_DECIDED = Amplification(3.0, window=UNDECIDED)
_CHESS: Mapping[str, Variant] = {
    "plain": ("simple", None, 0.0),
    "gamma 3 at 200 to 600": ("simple", _DECIDED, 0.0),
    "reject 0.5": ("simple", None, 0.5),
    "vsm loss": ("vsm", None, 0.0),
    "precision penalty": ("precision", None, 0.0),
    "precision penalty, gamma 3 at 200 to 600": ("precision", _DECIDED, 0.0),
}


def _for_samplers(
    variants: Mapping[str, Variant], samplers: Iterable[Sampler] = SAMPLERS
) -> dict[str, SamplingMethod]:
    """All variants with each sampler, the plain one first, without those that a sampler cannot tell from plain."""
    methods = {
        f"{sampler} {name}": SamplingMethod(sampler, *variant)
        for sampler in samplers
        for name, variant in variants.items()
    }
    return {name: method for name, method in methods.items() if method.sampler == "ddpm" or not _is_plain(method)}


def _is_plain(method: SamplingMethod) -> bool:
    """Whether a method is plain sampling with DDIM, whose steps add no noise of a learned variance."""
    gated = method.amplification is not None and method.amplification.gate == "learned"
    return method.loss != "simple" and not gated


MIXTURE_METHODS = _for_samplers(_MIXTURE)
MIXTURE_OURS = {
    "sampling": "ddim reject 0.2",
    "trained": "ddpm precision penalty",
    "vsm": "ddpm vsm loss",
}
MIXTURE_DETECTOR = HallucinationDetector((20,))
SHAPES_METHODS = _for_samplers(_SHAPES)
SHAPES_OURS = {"sampling": "ddim reject 0.1", "trained": "ddpm precision penalty, reject 0.1", "vsm": "ddpm vsm loss"}
SHAPES_DETECTOR = HallucinationDetector((800,))
"""At this noise level the network decides what an image shows. At t = 100, where it decides only what edges look like,
half as many hallucinations were found."""
CHESS_METHODS = _for_samplers(_CHESS, ("ddpm",))
CHESS_OURS = {
    "sampling": "ddpm gamma 3 at 200 to 600",
    "trained": "ddpm precision penalty, gamma 3 at 200 to 600",
    "vsm": "ddpm vsm loss",
}
CHESS_DETECTOR = SHAPES_DETECTOR
