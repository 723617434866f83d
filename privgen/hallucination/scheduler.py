"""A wrapper that amplifies the score of any Diffusers scheduler, and measures how its predictions vary.

Every pipeline hands x_t and the network's output to its scheduler, so amplification needs no network call of its own.
With gamma = 1 and eta = 1 the wrapper returns, bit for bit, what the scheduler inside returns.
"""

import copy
import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from typing import Any, ClassVar, TypedDict, Unpack

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import ConfigMixin, FrozenDict
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from privgen.diffusion.noise_level import noise_level, prediction_type, relative_timestep, takes_variance
from privgen.diffusion.parameterisation import predict_original
from privgen.errors import UsageError
from privgen.hallucination.amplification import (
    MIN_ALPHA,
    Amplification,
    Gate,
    Window,
    amplify_score,
    amplify_tangent,
    as_window,
    uncertainty_gate,
)
from privgen.hallucination.learned_variance import posterior_variance_of_original
from privgen.hallucination.running_variance import RunningVariance, variance


class AmplificationFields(TypedDict, total=False):
    """The fields of `Amplification`, as keywords."""

    gamma: float
    window: Window
    gate: Gate
    halfway: float
    memory: int
    eta: float


class AmplifiedScheduler(SchedulerMixin, ConfigMixin):
    """A Diffusers scheduler that amplifies the score, so that a model hallucinates less.

    It has the methods, signatures, attributes and configuration of the scheduler inside, plus one private entry in the
    configuration. So a pipeline takes it like any other, and `DDIMScheduler.from_config(amplified.config)` is the
    plain scheduler again.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> from privgen import AmplifiedScheduler
        >>> scheduler = AmplifiedScheduler(DDIMScheduler(), gamma=1.3, window=(200, 600))
        >>> scheduler.set_timesteps(25)
        >>> scheduler.amplification.gamma
        1.3

    Args:
        scheduler: any Diffusers scheduler for noise, sample, velocity or flow predictions. It is used, not copied.
        amplification: the settings; by default nothing is amplified.
        watch: lowest and highest timestep, on a scale of 1000 timesteps, whose predictions of x_0 count for
            `running_variance`; None measures nothing.
        **settings: fields of `Amplification`, which replace those of `amplification`.

    Attributes:
        last_sample: what the last step returned, (B, ...), while a window is watched; None before the first step.

    Raises:
        UsageError: the scheduler takes another kind of prediction.
        ValueError: a setting is out of range.
    """

    # All other names are the inner scheduler's, to read and to set.
    scheduler: Any
    last_sample: Tensor | None
    _OWN: ClassVar = frozenset(
        {"scheduler", "amplification", "watch", "last_sample", "_internal_dict", "_recent", "_watched"}
    )

    def __init__(
        self,
        scheduler: SchedulerMixin,
        amplification: Amplification | None = None,
        *,
        watch: Window | None = None,
        **settings: Unpack[AmplificationFields],
    ) -> None:
        if isinstance(scheduler, AmplifiedScheduler):
            scheduler = scheduler.scheduler
        prediction_type(scheduler)
        self.scheduler = scheduler
        self.amplification = replace(amplification or Amplification(), **settings)
        self.watch = None if watch is None else as_window(watch, "watch")
        self._start_trajectory()

    # Looking like the scheduler inside

    def __getattr__(self, name: str) -> Any:
        # copy and pickle ask for attributes before there are any.
        if name in self._OWN or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.scheduler, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.scheduler, name, value)

    def __len__(self) -> int:
        return len(self.scheduler)

    def __deepcopy__(self, memo: dict[int, Any]) -> "AmplifiedScheduler":
        return AmplifiedScheduler(copy.deepcopy(self.scheduler, memo), self.amplification, watch=self.watch)

    @property
    def _internal_dict(self) -> FrozenDict:
        own = {"scheduler": type(self.scheduler).__name__, "watch": self.watch, **asdict(self.amplification)}
        return FrozenDict({**self.scheduler.config, "_class_name": type(self).__name__, "_amplified": own})

    @_internal_dict.setter
    def _internal_dict(self, config: Mapping[str, Any]) -> None:
        # Pipelines repair outdated configurations this way when they are built.
        own = {"_class_name": type(self.scheduler).__name__} if "_class_name" in self.scheduler.config else {}
        plain = {k: v for k, v in config.items() if k not in ("_class_name", "_amplified")}
        self.scheduler._internal_dict = FrozenDict({**plain, **own})

    @property
    def config(self) -> FrozenDict:
        """The inner scheduler's configuration, and the settings of the amplification."""
        return self._internal_dict

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any] | None = None,
        return_unused_kwargs: bool = False,
        *,
        scheduler: str | None = None,
        watch: Window | None = None,
        **kwargs: Any,
    ) -> Any:
        """Build from a configuration: one of this class, or a plain scheduler's.

        Args:
            config: as a pipeline holds it, or as `save_pretrained` has written it.
            return_unused_kwargs: return (scheduler, arguments that nothing used) instead.
            scheduler: class name of the scheduler inside; by default the configuration names it.
            watch: see the class; by default the configuration holds it.
            **kwargs: fields of `Amplification`; all others go to the scheduler inside.

        Raises:
            UsageError: the name is not that of a Diffusers scheduler.
        """
        plain = dict(config or {})
        saved = dict(plain.pop("_amplified", {})) if plain.get("_class_name") == cls.__name__ else {}
        saved_scheduler, saved_watch = saved.pop("scheduler", None), saved.pop("watch", None)
        inner_class = _scheduler_class(scheduler or saved_scheduler or plain.get("_class_name"))
        plain["_class_name"] = inner_class.__name__
        given = {field.name: kwargs.pop(field.name) for field in fields(Amplification) if field.name in kwargs}
        inner, unused = inner_class.from_config(plain, return_unused_kwargs=True, **kwargs)
        amplification = Amplification(**{**saved, **given})
        built = cls(inner, amplification, watch=saved_watch if watch is None else watch)
        return (built, unused) if return_unused_kwargs else built

    # Pipelines look at the parameters of the next two methods to see what a scheduler can do.

    @property
    def set_timesteps(self) -> Callable[..., None]:
        """The inner scheduler's `set_timesteps`, which also starts a new trajectory."""

        @functools.wraps(self.scheduler.set_timesteps)
        def set_timesteps(*args: Any, **kwargs: Any) -> None:
            self._start_trajectory()
            self.scheduler.set_timesteps(*args, **kwargs)

        return set_timesteps

    @property
    def step(self) -> Callable[..., Any]:
        """The inner scheduler's `step`, from an amplified network output."""

        @functools.wraps(self.scheduler.step)
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            return self._step(model_output, timestep, sample, *args, **kwargs)

        return step

    # Amplifying

    def _step(self, output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        learned: Tensor | None = None
        if output.shape[1] == 2 * sample.shape[1]:
            output, learned = output.chunk(2, dim=1)
        if self.amplification.gamma != 1 or self.watch is not None:
            output = self._amplify(output, learned, timestep, sample)
        if learned is not None and takes_variance(self.scheduler):
            output = torch.cat([output, learned], dim=1)
        result = self.scheduler.step(output, timestep, sample, *args, **kwargs)
        eta = self.amplification.eta
        if eta != 1 and self.amplification.acts_at(relative_timestep(self.scheduler, timestep)):
            if isinstance(result, tuple):
                result = (amplify_tangent(sample, result[0], eta), *result[1:])
            else:
                result.prev_sample = amplify_tangent(sample, result.prev_sample, eta)
        if self.watch is not None:
            self.last_sample = result[0] if isinstance(result, tuple) else result.prev_sample
        return result

    def _amplify(self, output: Tensor, learned: Tensor | None, timestep: Any, sample: Tensor) -> Tensor:
        """The amplified output; the plain one is noted where a gate or `running_variance` needs it."""
        level, prediction = noise_level(self.scheduler, timestep), prediction_type(self.scheduler)
        if level.alpha < MIN_ALPHA:
            return output
        settings, now = self.amplification, relative_timestep(self.scheduler, timestep)
        watched = self.watch is not None and self.watch[0] <= now <= self.watch[1]
        gated = settings.gamma != 1 and settings.gate == "running_variance"
        if watched or gated:
            exact = torch.promote_types(sample.dtype, torch.float32)
            original = predict_original(output.to(exact), sample.to(exact), level, prediction).detach()
            if gated:
                self._recent.append(original)
            if watched:
                self._watched.add(original)
        if settings.gamma == 1 or not settings.acts_at(now):
            return output
        factor = 1 + (settings.gamma - 1) * self._gate(learned, timestep)
        return amplify_score(output, sample, level, prediction, factor)

    def _gate(self, learned: Tensor | None, timestep: Any) -> Tensor | float:
        if self.amplification.gate == "constant":
            return 1.0
        if self.amplification.gate == "running_variance":
            # A single prediction does not tell how certain it is.
            if len(self._recent) < 2:
                return 0.0
            return uncertainty_gate(variance(self._recent), self.amplification.halfway)
        if learned is None:
            raise UsageError(
                'The gate "learned" needs a network with a learned variance (twice the channels of its sample); '
                'use the gate "running_variance", or train such a network.'
            )
        t, alphas = round(float(timestep)), self.scheduler.alphas_cumprod
        previous = float(alphas[t - 1]) if t > 0 else 1.0
        return uncertainty_gate(
            posterior_variance_of_original(learned, float(alphas[t]), previous), self.amplification.halfway
        )

    def _start_trajectory(self) -> None:
        self._recent: deque[Tensor] = deque(maxlen=self.amplification.memory)
        self._watched = RunningVariance()
        self.last_sample = None

    def running_variance(self) -> Tensor:
        """How much the predicted x_0 of each sample changed over the watched steps (arXiv 2406.09358).

        High values indicate hallucinations. The predictions are the network's own, before amplification.

        Returns:
            (B,): the unbiased variance over the steps, averaged over the values of a sample.

        Raises:
            UsageError: fewer than two steps were watched since `set_timesteps`.
        """
        return self._watched.per_sample()


@contextmanager
def amplified(
    pipeline: DiffusionPipeline, amplification: Amplification | None = None, *, watch: Window | None = None
) -> Iterator[AmplifiedScheduler]:
    """Amplify a pipeline inside a `with` block; afterwards, even after an exception, it has its own scheduler again.

    Args:
        pipeline: any pipeline with one scheduler.
        amplification: the settings; by default nothing is amplified.
        watch: see `AmplifiedScheduler`.

    Yields:
        The amplified copy of the pipeline's scheduler.
    """
    own = pipeline.scheduler
    pipeline.scheduler = AmplifiedScheduler(copy.deepcopy(own), amplification, watch=watch)
    try:
        yield pipeline.scheduler
    finally:
        pipeline.scheduler = own


def _scheduler_class(name: str | None) -> type[SchedulerMixin]:
    # The name comes from a file, so only Diffusers' own schedulers are looked up.
    found = getattr(diffusers, name, None) if name else None
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise UsageError(
            f"{name!r} is not a scheduler of Diffusers; name one, for example "
            'AmplifiedScheduler.from_config(config, scheduler="DDIMScheduler").'
        )
    return found
