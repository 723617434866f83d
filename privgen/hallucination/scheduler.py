"""Score amplification for any Diffusers scheduler, and a look at the trajectory that it sees anyway.

    pipe.scheduler = AmplifiedScheduler(pipe.scheduler, Amplification(gamma=1.3, window=(0, 100)))
    images = pipe("a cat").images

A scheduler is the one place that every pipeline hands x_t and the prediction to, so this needs no network call of its
own. gamma = 1 with eta = 1 leaves every bit as the scheduler within makes it.
"""

import copy
import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any, ClassVar

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import ConfigMixin, FrozenDict
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from privgen.diffusion.noise_level import noise_level, prediction_type, relative_timestep, takes_variance
from privgen.diffusion.parameterisation import (
    MIN_ALPHA,
    NoiseLevel,
    Prediction,
    amplify_score,
    amplify_tangent,
    posterior_variance_of_original,
    predict_original,
    uncertainty_gate,
)
from privgen.errors import UsageError
from privgen.hallucination.amplification import Amplification, Window, as_window
from privgen.hallucination.running_variance import RunningVariance


class AmplifiedScheduler(SchedulerMixin, ConfigMixin):
    """A Diffusers scheduler that amplifies the score, and can watch the trajectory.

    It looks like the scheduler within: same methods, signatures, attributes and configuration, to which it adds one
    private entry. So `DDIMScheduler.from_config(amplified.config)` is the plain scheduler again.

    Args:
        scheduler: any Diffusers scheduler that tells its noise level; it is used, not copied.
        amplification: what to do.
        watch: lowest and highest timestep, on the scale of 1000, between which predictions of x_0 are watched for
            `running_variance`; None watches nothing.

    Attributes:
        made: what the last step returned, (B, ...), if anything is watched; None before the first step.

    Raises:
        UsageError: the scheduler is one whose predictions cannot be told.
    """

    # What is not named here is the inner scheduler's, to read and to set.
    scheduler: Any
    made: Tensor | None
    _OWN: ClassVar = frozenset({"scheduler", "amplification", "watch", "_internal_dict", "_recent", "_trace", "made"})

    def __init__(
        self,
        scheduler: SchedulerMixin,
        amplification: Amplification | None = None,
        *,
        watch: Window | None = None,
    ) -> None:
        if isinstance(scheduler, AmplifiedScheduler):
            scheduler = scheduler.scheduler
        prediction_type(scheduler)
        self.scheduler = scheduler
        self.amplification = amplification or Amplification()
        self.watch = None if watch is None else as_window(watch, "watch")
        self._forget()

    # Looking like the scheduler within

    def __getattr__(self, name: str) -> Any:
        # Copying asks for attributes before there are any.
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
        """The inner scheduler's configuration, and how it is amplified."""
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
            return_unused_kwargs: return (scheduler, arguments that nobody took) instead.
            scheduler: class of the scheduler within; by default what the configuration says.
            watch: see the class; by default what the configuration says.
            **kwargs: fields of `Amplification`; others go to the scheduler within.

        Raises:
            UsageError: no Diffusers scheduler is named.
        """
        plain = dict(config or {})
        is_ours = plain.get("_class_name") == cls.__name__
        known = dict(plain.pop("_amplified", {})) if is_ours else {}
        name = scheduler or known.pop("scheduler", None) or plain.get("_class_name")
        known.pop("scheduler", None)
        inner_class = _scheduler_class(name)
        plain["_class_name"] = inner_class.__name__
        kept_watch = known.pop("watch", None)
        chosen = {field.name: kwargs.pop(field.name) for field in fields(Amplification) if field.name in kwargs}
        inner, unused = inner_class.from_config(plain, return_unused_kwargs=True, **kwargs)
        made = cls(inner, Amplification(**{**known, **chosen}), watch=watch if watch is not None else kept_watch)
        return (made, unused) if return_unused_kwargs else made

    @property
    def set_timesteps(self) -> Callable[..., None]:
        """The inner scheduler's method; it also begins a new trajectory."""

        # Pipelines look at the parameters of this method, and of `step`, to see what a scheduler can do.
        @functools.wraps(self.scheduler.set_timesteps)
        def set_timesteps(*args: Any, **kwargs: Any) -> None:
            self._forget()
            self.scheduler.set_timesteps(*args, **kwargs)

        return set_timesteps

    @property
    def step(self) -> Callable[..., Any]:
        """The inner scheduler's step, from an amplified prediction."""

        @functools.wraps(self.scheduler.step)
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            return self._step(model_output, timestep, sample, *args, **kwargs)

        return step

    # Amplifying

    def _step(self, output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        amplification, scheduler = self.amplification, self.scheduler
        mean, learned = _split(output, sample)
        now = relative_timestep(scheduler, timestep)
        inside = amplification.acts_at(now)
        if amplification.gamma != 1 or self.watch is not None:
            mean = self._amplified(mean, learned, timestep, sample, now, inside)
        # Most schedulers have no use for a learned variance.
        output = mean if learned is None or not takes_variance(scheduler) else torch.cat([mean, learned], dim=1)
        made = scheduler.step(output, timestep, sample, *args, **kwargs)
        if amplification.eta != 1 and inside:
            made = _tangential(made, sample, amplification.eta)
        if self.watch is not None:
            self.made = made[0] if isinstance(made, tuple) else made.prev_sample
        return made

    def _amplified(
        self, mean: Tensor, learned: Tensor | None, timestep: Any, sample: Tensor, now: float, inside: bool
    ) -> Tensor:
        level, prediction = noise_level(self.scheduler, timestep), prediction_type(self.scheduler)
        if level.alpha < MIN_ALPHA:
            return mean
        self._look(mean, sample, level, prediction, now)
        if self.amplification.gamma == 1 or not inside:
            return mean
        factor = 1 + (self.amplification.gamma - 1) * self._gate(learned, timestep)
        return amplify_score(mean, sample, level, prediction, factor)

    def _gate(self, learned: Tensor | None, timestep: Any) -> Tensor | float:
        amplification = self.amplification
        if amplification.gate == "constant":
            return 1.0
        if amplification.gate == "running_variance":
            # The first prediction of a trajectory says nothing about how certain it is.
            if len(self._recent) < 2:
                return 0.0
            return uncertainty_gate(_variance(tuple(self._recent)), amplification.halfway)
        if learned is None:
            raise UsageError(
                "The gate learned needs a network with a learned variance (twice the channels of its sample); "
                "use the gate running_variance, or train one."
            )
        t = round(float(timestep))
        alphas = self.scheduler.alphas_cumprod
        before = float(alphas[t - 1]) if t > 0 else 1.0
        variance = posterior_variance_of_original(learned, float(alphas[t]), before)
        return uncertainty_gate(variance, amplification.halfway)

    # Watching

    def _forget(self) -> None:
        self._recent: deque[Tensor] = deque(maxlen=self.amplification.memory)
        self._trace = RunningVariance()
        self.made = None

    def _look(self, mean: Tensor, sample: Tensor, level: NoiseLevel, prediction: Prediction, now: float) -> None:
        watched = self.watch is not None and self.watch[0] <= now <= self.watch[1]
        remembered = self.amplification.gamma != 1 and self.amplification.gate == "running_variance"
        if not (watched or remembered):
            return
        exact = torch.promote_types(sample.dtype, torch.float32)
        original = predict_original(mean.to(exact), sample.to(exact), level, prediction).detach()
        if remembered:
            self._recent.append(original)
        if watched:
            self._trace.add(original)

    def running_variance(self) -> Tensor:
        """How much the predicted x_0 of each sample changed over the watched steps (arXiv 2406.09358).

        High values tell of hallucinations. Predictions are the network's own, before amplification.

        Returns:
            (B,): variance over the steps (n - 1 below), mean over the numbers of a sample.

        Raises:
            UsageError: fewer than two steps were watched since `set_timesteps`.
        """
        return self._trace.per_sample()


@contextmanager
def amplified(
    pipeline: DiffusionPipeline, amplification: Amplification | None = None, *, watch: Window | None = None
) -> Iterator[AmplifiedScheduler]:
    """Lend a pipeline an amplified scheduler; afterwards, and after an exception, it has its own again.

    Args:
        pipeline: any pipeline with one scheduler.
        amplification: what to do.
        watch: see `AmplifiedScheduler`.

    Yields:
        The scheduler in use.
    """
    own = pipeline.scheduler
    lent = AmplifiedScheduler(copy.deepcopy(own), amplification, watch=watch)
    pipeline.scheduler = lent
    try:
        yield lent
    finally:
        pipeline.scheduler = own


def _split(output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor | None]:
    """The prediction, and what the network says of its variance."""
    if output.shape[1] != 2 * sample.shape[1]:
        return output, None
    mean, learned = output.chunk(2, dim=1)
    return mean, learned


def _tangential(made: Any, sample: Tensor, eta: float) -> Any:
    """A step's result, tuple or object, with its part across the sample amplified."""
    if isinstance(made, tuple):
        return (amplify_tangent(sample, made[0], eta), *made[1:])
    made.prev_sample = amplify_tangent(sample, made.prev_sample, eta)
    return made


def _variance(predictions: tuple[Tensor, ...]) -> Tensor:
    # Many times faster than `torch.stack(predictions).var(0)` for a handful of tensors.
    mean = functools.reduce(torch.add, predictions) / len(predictions)
    squares = ((prediction - mean).square() for prediction in predictions)
    return functools.reduce(torch.add, squares) / (len(predictions) - 1)


def _scheduler_class(name: str | None) -> type[SchedulerMixin]:
    # Names come from files: nothing but Diffusers' own schedulers is looked up.
    found = getattr(diffusers, name, None) if name else None
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise UsageError(
            f"{name!r} is no scheduler of Diffusers; name one, for example "
            'AmplifiedScheduler.from_config(config, scheduler="DDIMScheduler").'
        )
    return found
