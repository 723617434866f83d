import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPAGPipeline,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback

from privgen.watermark.token import encode_with_token
from privgen.watermark.write.callbacks import LatentMarkCallback, WatermarkCallback


PROMPT = "a cat"


class Record(PipelineCallback):
    """Keeps what the loop hands over after each step."""

    def __init__(self):
        super().__init__()
        self.timesteps, self.latents, self.embeds = [], [], []

    @property
    def tensor_inputs(self):
        return ["latents", "prompt_embeds"]

    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        self.timesteps.append(float(timesteps))
        self.latents.append(callback_kwargs["latents"].clone())
        self.embeds.append(callback_kwargs["prompt_embeds"].clone())
        return callback_kwargs


def run(pipe, *callbacks, prompt=PROMPT, steps=5, **options):
    """What the loop hands over after each step, once `callbacks` have acted."""
    record = Record()
    options.setdefault("generator", torch.Generator().manual_seed(0))
    chain = MultiPipelineCallbacks([*callbacks, record])
    pipe(prompt, num_inference_steps=steps, callback_on_step_end=chain, output_type="latent", **options)
    return record


@torch.no_grad()
def marked(pipe, prompt=PROMPT, seed=0):
    vectors = 3 * torch.randn(2, 32, generator=torch.Generator().manual_seed(seed))
    return encode_with_token(pipe, prompt, vectors)


@torch.no_grad()
def plain(pipe, prompt=PROMPT):
    return pipe.encode_prompt(prompt, "cpu", 1, True)


def test_images_differ_through_the_timesteps_at_or_below_tau_only(tiny_pipe):
    without = run(tiny_pipe)
    assert without.timesteps == [801, 601, 401, 201, 1]
    with_token = run(tiny_pipe, WatermarkCallback(marked(tiny_pipe), tau=401))
    same = [torch.equal(*pair) for pair in zip(with_token.latents, without.latents, strict=True)]
    assert same == [True, True, False, False, False]  # the latents after a step; 401 is the third


@pytest.mark.parametrize(("tau", "steps"), [(400.9, 3), (401, 2), (600, 2), (1, 4), (800, 1)])
def test_the_first_marked_step_is_the_first_at_or_below_tau(tiny, tau, steps):
    pipe = tiny.tiny_pipeline()
    embeds = marked(pipe)
    record = run(pipe, WatermarkCallback(embeds, tau=tau))
    swapped = [torch.equal(pair.chunk(2)[1], embeds) for pair in record.embeds]
    assert swapped == [False] * (steps - 1) + [True] * (6 - steps)  # after step i the embeddings of step i + 1


def test_swapping_equals_the_loop_written_out(tiny_pipe):
    embeds, (positive, negative) = marked(tiny_pipe), plain(tiny_pipe)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    record = run(tiny_pipe, WatermarkCallback(embeds, tau=401))
    scheduler = tiny_pipe.scheduler
    scheduler.set_timesteps(5)
    with torch.no_grad():
        for t in scheduler.timesteps:
            both = torch.cat([negative, embeds if t <= 401 else positive])
            without, with_prompt = tiny_pipe.unet(torch.cat([latents] * 2), t, both).sample.chunk(2)
            latents = scheduler.step(without + 7.5 * (with_prompt - without), t, latents).prev_sample
    torch.testing.assert_close(record.latents[-1], latents)


def test_the_negative_prompt_stays_unless_it_is_given(tiny_pipe):
    embeds, other, (_, negative) = marked(tiny_pipe), marked(tiny_pipe, seed=1), plain(tiny_pipe)
    kept = run(tiny_pipe, WatermarkCallback(embeds, tau=401)).embeds[-1]
    assert torch.equal(kept, torch.cat([negative, embeds]))
    swapped = run(tiny_pipe, WatermarkCallback(embeds, tau=401, negative=other)).embeds[-1]
    assert torch.equal(swapped, torch.cat([other, embeds]))


def test_without_guidance_there_is_no_negative(tiny_pipe):
    embeds = marked(tiny_pipe)
    record = run(tiny_pipe, WatermarkCallback(embeds, tau=401), guidance_scale=1)
    assert torch.equal(record.embeds[-1], embeds)
    with pytest.raises(ValueError, match="classifier-free guidance"):
        run(tiny_pipe, WatermarkCallback(embeds, tau=401, negative=embeds), guidance_scale=1)


def test_every_image_of_a_batch_can_have_its_own(tiny_pipe):
    prompts = ["a cat", "a dog"]
    embeds = torch.cat([marked(tiny_pipe, prompts[0]), marked(tiny_pipe, prompts[1], seed=1)])
    residual = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    callbacks = [WatermarkCallback(embeds, tau=401), LatentMarkCallback(residual)]
    batch = run(tiny_pipe, *callbacks, prompt=prompts, generator=generators)
    for i, prompt in enumerate(prompts):
        callbacks = [WatermarkCallback(embeds[i : i + 1], tau=401), LatentMarkCallback(residual[i : i + 1])]
        single = run(tiny_pipe, *callbacks, prompt=prompt, generator=torch.Generator().manual_seed(3 + i))
        torch.testing.assert_close(batch.latents[-1][i : i + 1], single.latents[-1], atol=1e-4, rtol=1e-4)


def test_one_for_all_images_of_a_batch(tiny_pipe):
    embeds = marked(tiny_pipe)
    record = run(tiny_pipe, WatermarkCallback(embeds, tau=401), num_images_per_prompt=2)
    assert torch.equal(record.embeds[-1][2:], embeds.expand(2, -1, -1))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_callback_can_be_used_again(tiny_pipe, seed):
    callback = WatermarkCallback(marked(tiny_pipe), tau=401)
    runs = [run(tiny_pipe, callback, generator=torch.Generator().manual_seed(seed)) for _ in range(2)]
    assert torch.equal(runs[0].latents[-1], runs[1].latents[-1])
    assert callback.config["tau"] == 401


SCHEDULERS = [PNDMScheduler, HeunDiscreteScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_of_other_orders_and_repeated_timesteps(tiny, scheduler):
    pipe = tiny.tiny_pipeline()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    embeds = marked(pipe)
    record = run(pipe, WatermarkCallback(embeds, tau=450))
    swapped = [torch.equal(both.chunk(2)[1], embeds) for both in record.embeds]
    assert swapped == [t <= 450 for t in [*record.timesteps[1:], 0]]
    assert 0 < sum(swapped) < len(swapped)


def test_schedulers_with_other_than_1000_timesteps(tiny):
    pipe = tiny.tiny_pipeline()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, num_train_timesteps=500)
    embeds = marked(pipe)
    record = run(pipe, WatermarkCallback(embeds, tau=402))
    assert record.timesteps == [401, 301, 201, 101, 1]
    assert [torch.equal(both.chunk(2)[1], embeds) for both in record.embeds] == [False, True, True, True, True]


def image_to_image(tiny, strength, callback, steps=5):
    pipe = StableDiffusionImg2ImgPipeline(**tiny.tiny_pipeline().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return run(pipe, callback, steps=steps, image=image, strength=strength)


def test_image_to_image_counts_its_steps_from_where_it_begins(tiny):
    embeds = marked(tiny.tiny_pipeline())
    record = image_to_image(tiny, 0.6, WatermarkCallback(embeds, tau=201))
    assert record.timesteps == [401, 201, 1]
    assert [torch.equal(both.chunk(2)[1], embeds) for both in record.embeds] == [True, True, True]
    record = image_to_image(tiny, 0.8, WatermarkCallback(embeds, tau=201))
    assert [torch.equal(both.chunk(2)[1], embeds) for both in record.embeds] == [False, True, True, True]


def test_a_run_that_begins_below_tau_is_marked_from_its_second_step_with_a_warning(tiny, caplog):
    embeds = marked(tiny.tiny_pipeline())
    record = image_to_image(tiny, 0.4, WatermarkCallback(embeds, tau=300))
    assert record.timesteps == [201, 1]
    assert torch.equal(record.embeds[0].chunk(2)[1], embeds)
    assert "the first timestep, 201, is at or below tau = 300, so that step ran unmarked." in caplog.text


def test_a_run_of_one_step_below_tau_says_that_nothing_was_marked(tiny, caplog):
    image_to_image(tiny, 0.2, WatermarkCallback(marked(tiny.tiny_pipeline()), tau=300))
    assert "ran unmarked, and there is no other" in caplog.text


def test_a_run_that_never_reaches_tau_is_refused(tiny):
    pipe = tiny.tiny_pipeline()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")
    for callback in (WatermarkCallback(marked(pipe), tau=100), LatentMarkCallback(torch.zeros(1, 4, 16, 16), tau=100)):
        with pytest.raises(ValueError, match="at or below tau = 100, the lowest is 199"):
            run(pipe, callback)


def test_perturbed_attention_guidance_swaps_every_positive_copy(tiny):
    pipe = StableDiffusionPAGPipeline(
        **tiny.tiny_pipeline().components, requires_safety_checker=False, pag_applied_layers=["mid"]
    )
    pipe.set_progress_bar_config(disable=True)
    embeds, (_, negative) = marked(pipe), plain(pipe)
    with pytest.raises(ValueError, match=r"pass callback_on_step_end_tensor_inputs=callback.tensor_inputs"):
        run(pipe, WatermarkCallback(embeds, tau=401), pag_scale=1.0)
    # Diffusers' PAG pipelines do not ask callbacks what they need.
    inputs = ["latents", "prompt_embeds"]
    record = run(pipe, WatermarkCallback(embeds, tau=401), pag_scale=1.0, callback_on_step_end_tensor_inputs=inputs)
    assert torch.equal(record.embeds[-1], torch.cat([negative, embeds, embeds]))


def test_composes_with_a_callback_that_ends_guidance(tiny_pipe):
    embeds = marked(tiny_pipe)
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    record = run(tiny_pipe, cutoff, WatermarkCallback(embeds, tau=401))
    assert [len(value) for value in record.embeds] == [1] * 5
    assert torch.equal(record.embeds[-1], embeds)


def test_a_residual_is_added_once_after_the_last_step(tiny_pipe):
    residual = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    without, with_mark = run(tiny_pipe), run(tiny_pipe, LatentMarkCallback(residual))
    for now, then in zip(with_mark.latents[:-1], without.latents[:-1], strict=True):
        assert torch.equal(now, then)
    assert torch.equal(with_mark.latents[-1], without.latents[-1] + residual)


def test_a_residual_can_be_added_at_tau(tiny_pipe):
    residual = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    without, with_mark = run(tiny_pipe), run(tiny_pipe, LatentMarkCallback(residual, tau=401))
    assert torch.equal(with_mark.latents[0], without.latents[0])
    assert torch.equal(with_mark.latents[1], without.latents[1] + residual)
    assert not torch.allclose(with_mark.latents[2], without.latents[2] + residual)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: WatermarkCallback(torch.zeros(1, 77, 32), tau=1001), "0..1000"),
        (lambda: LatentMarkCallback(torch.zeros(1, 4, 16, 16), tau=-1), "0..1000"),
        (lambda: WatermarkCallback(torch.zeros(1, 77, 32), negative=torch.zeros(1, 76, 32)), "negative"),
    ],
)
def test_callbacks_refuse_what_makes_no_sense(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    "callback",
    [
        WatermarkCallback(torch.zeros(1, 77, 16)),
        WatermarkCallback(torch.zeros(3, 77, 32)),
        WatermarkCallback(torch.zeros(1, 76, 32)),
        LatentMarkCallback(torch.zeros(1, 4, 8, 8)),
        LatentMarkCallback(torch.zeros(3, 4, 16, 16)),
    ],
)
def test_shapes_must_be_the_pipelines(tiny, callback):
    with pytest.raises(ValueError, match="of shape"):
        run(tiny.tiny_pipeline(), callback)
