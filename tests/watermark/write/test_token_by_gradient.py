import dataclasses

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler

from privgen.diffusion.unrolled_ddim import Schedule, UnrolledDDIM
from privgen.errors import PrivgenError, UsageError
from privgen.watermark.key import Key, Secret
from privgen.watermark.token import Token
from privgen.watermark.write.token_by_gradient import OptimiseOptions, optimise_token


KEY = Key("alice", Secret(bytes(range(32))))
PROMPTS = ["a cat", "two dogs"]
QUICK = OptimiseOptions(steps=3, tau=600, vectors=2, unrolled_steps=2, start_steps=2, lr=0.1)


class Extractor(torch.nn.Module):
    """8 random projections of what differs from an image, in units of `ci95`."""

    def __init__(self, centre=0.5, spread=0.1):
        super().__init__()
        self.config = type("Config", (), {"n_bits": 8})()
        self.dropout = torch.nn.Dropout(0.5)
        weight = torch.randn(8, 3 * 32 * 32, generator=torch.Generator().manual_seed(0))
        self.weight = torch.nn.Parameter(weight / (55 * spread))
        self.centre = centre

    def forward(self, images):
        return self.dropout((images - self.centre).flatten(1)) @ self.weight.T


def learn(pipe, options=QUICK, extractor=None, seed=0, prompts=PROMPTS, accelerator=None, progress=None, **changes):
    return optimise_token(
        pipe,
        extractor or Extractor(),
        KEY,
        prompts=prompts,
        options=dataclasses.replace(options, **changes),
        generator=torch.Generator().manual_seed(seed),
        accelerator=accelerator,
        progress=progress,
    )


@pytest.mark.parametrize("start", ["chain", "renoise"])
def test_the_loss_falls_and_the_token_is_a_plain_textual_inversion(tiny_pipe, tmp_path, start):
    options = dataclasses.replace(QUICK, steps=30, lambda_z=1.0, start=start, tau=300)
    first, other = (
        Token(torch.randn(2, 32, generator=torch.Generator().manual_seed(seed)), KEY.key_id) for seed in (5, 6)
    )
    seen = []

    def look(images, generator):
        seen.append(images.detach())
        return images

    def message_loss(token, **more):
        """On starting points and noise that are the same for every token."""
        frozen = dataclasses.replace(options, steps=6, lr=1e-9)
        history = learn(tiny_pipe, frozen, init=token, prompts=PROMPTS[:1], seed=1, **more).history
        return sum(step.message_loss for step in history) / len(history)

    for token in (first, other):
        message_loss(token, attack=look)
    images, others = torch.cat(seen).chunk(2)
    spread = (images - others).std().item() if start == "chain" else images.std(0).mean().item()
    extractor = Extractor(images.mean(0), spread)
    result = learn(tiny_pipe, options, extractor=extractor, init=first, prompts=PROMPTS[:1], seed=1)
    token = result.token
    # New noise moves the images of these random models far more than a token can.
    assert message_loss(token, extractor=extractor) < (0.9 if start == "chain" else 1.0) * message_loss(
        first, extractor=extractor
    )
    assert (token.key_id, token.tau, tuple(token.embedding.shape)) == (KEY.key_id, 300, (2, 32))
    assert dict(token.metadata) == {"method": "optimised", "base_model": "StableDiffusionPipeline"}
    tiny_pipe.load_textual_inversion(token.save(tmp_path / "alice.safetensors"))
    images = tiny_pipe(f"a cat {token.name}", num_inference_steps=2, output_type="pt").images
    assert images.isfinite().all()


def test_the_same_generator_gives_the_same_token(tiny_pipe):
    first, second = learn(tiny_pipe), learn(tiny_pipe)
    assert torch.equal(first.token.embedding, second.token.embedding)
    assert first.history == second.history
    assert not torch.equal(first.token.embedding, learn(tiny_pipe, seed=1).token.embedding)


def test_checkpointing_changes_nothing(tiny_pipe):
    kept = learn(tiny_pipe, dataclasses.replace(QUICK, checkpointing=False))
    torch.testing.assert_close(kept.token.embedding, learn(tiny_pipe).token.embedding)


def test_the_loss_is_the_weighted_sum_of_its_parts(tiny_pipe):
    options = dataclasses.replace(QUICK, lambda_w=3.0, lambda_z=7.0)
    for step in learn(tiny_pipe, options).history:
        assert step.loss == pytest.approx(3 * step.message_loss + 7 * step.latent_loss, rel=1e-4)
        assert 0 <= step.bit_accuracy <= 1
    assert [step.step for step in learn(tiny_pipe, options).history] == [0, 1, 2]


def test_without_the_message_the_latent_loss_falls(tiny_pipe):
    options = dataclasses.replace(QUICK, steps=12, lambda_w=0.0, lr=0.01)
    history = learn(tiny_pipe, options, prompts=PROMPTS[:1]).history
    assert history[-1].latent_loss < history[0].latent_loss


def test_a_token_can_be_refined(tiny_pipe):
    given = Token(torch.full((2, 32), 0.1), KEY.key_id)
    options = dataclasses.replace(QUICK, steps=1, lr=1e-3)
    refined = learn(tiny_pipe, options, init=given).token.embedding
    assert 0 < (refined - given.embedding).abs().max() <= 1.01e-3
    with pytest.raises(UsageError, match="has 1 vectors of 32 numbers, and 2 of 32 are needed"):
        learn(tiny_pipe, init=torch.zeros(1, 32))


def test_the_attack_stands_between_decoder_and_extractor(tiny_pipe):
    seen = []

    def attack(images, *, generator):
        seen.append((tuple(images.shape), len(generator)))
        return 0 * images + 0.5 + 0.01 * torch.rand(1, generator=generator[0])

    assert all(step.message_loss > 0 for step in learn(tiny_pipe, attack=attack).history)
    assert seen == [((1, 3, 32, 32), 1)] * 3
    with pytest.raises(UsageError, match="attacks that are differentiable"):
        learn(tiny_pipe, attack=lambda images, generator: images.detach())


def test_progress_hears_of_every_step(tiny_pipe):
    heard = []
    assert learn(tiny_pipe, progress=heard.append).history == tuple(heard)


class TwoProcesses:
    """Stands for one of two processes: keeps what it contributes, or adds what the other one did."""

    def __init__(self, rank, other=None):
        self.process_index, self.num_processes = rank, 2
        self.given, self.other = [], other

    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        self.given.append(tensor.clone())
        return tensor + self.other[len(self.given) - 1] if self.other else tensor


def test_two_processes_give_the_result_of_one(tiny_pipe):
    options = dataclasses.replace(QUICK, steps=1, batch_size=3, lr=0.01)
    whole = learn(tiny_pipe, options)
    second = TwoProcesses(1)
    learn(tiny_pipe, options, accelerator=second)
    both = learn(tiny_pipe, options, accelerator=TwoProcesses(0, second.given))
    torch.testing.assert_close(both.token.embedding, whole.token.embedding)
    assert both.history[0].loss == pytest.approx(whole.history[0].loss, rel=1e-5)


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_left_as_it_was(tiny_pipe, fails):
    extractor = Extractor().train()
    tiny_pipe.unet.train()
    tiny_pipe.vae.decoder.requires_grad_(False)
    modules = [tiny_pipe.unet, tiny_pipe.vae, tiny_pipe.text_encoder, extractor]

    def state():
        modes = [part.training for module in modules for part in module.modules()]
        flags = [value.requires_grad for module in modules for value in module.parameters()]
        return modes, flags, [value.clone() for module in modules for value in module.state_dict().values()]

    modes, flags, values = state()
    scheduler, words = tiny_pipe.scheduler, len(tiny_pipe.tokenizer)
    if fails:
        with pytest.raises(ZeroDivisionError):
            learn(tiny_pipe, extractor=extractor, progress=lambda step: 1 / 0)
    else:
        learn(tiny_pipe, extractor=extractor)
    after = state()
    assert (after[0], after[1]) == (modes, flags)
    assert all(torch.equal(*pair) for pair in zip(after[2], values, strict=True))
    assert all(value.grad is None for module in modules for value in module.parameters())
    assert tiny_pipe.scheduler is scheduler
    assert len(tiny_pipe.tokenizer) == words
    assert not tiny_pipe.text_encoder.get_input_embeddings()._forward_hooks


def test_it_works_inside_no_grad(tiny_pipe):
    with torch.no_grad():
        assert len(learn(tiny_pipe).history) == 3


def test_a_local_folder_is_named_without_its_place(tiny_pipe, tmp_path):
    tiny_pipe.register_to_config(_name_or_path=str(tmp_path))
    assert learn(tiny_pipe).token.metadata["base_model"] == tmp_path.name
    tiny_pipe.register_to_config(_name_or_path="organisation/name")
    assert learn(tiny_pipe).token.metadata["base_model"] == "organisation/name"


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_the_unrolled_steps_are_those_of_diffusers(tiny_pipe, guidance_scale, generator):
    scheduler = DDIMScheduler.from_config(tiny_pipe.scheduler.config)
    scheduler.set_timesteps(4)
    timesteps = scheduler.timesteps.tolist()
    latents = torch.randn(1, 4, 16, 16, generator=generator)
    seen = []
    tiny_pipe.scheduler = scheduler
    with torch.no_grad():
        embeds, negative = tiny_pipe.encode_prompt("a cat", "cpu", 1, True)
        denoiser = UnrolledDDIM(tiny_pipe.unet, Schedule.of(scheduler), guidance_scale)
        ours = denoiser.run(latents, timesteps, embeds, negative)
    tiny_pipe(
        "a cat",
        latents=latents,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        output_type="latent",
        callback_on_step_end=lambda pipe, index, t, tensors: seen.append(tensors["latents"]) or {},
    )
    for mine, theirs in zip(ours, seen, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_the_noise_schedule_is_that_of_any_ddpm_scheduler(tiny_pipe):
    ddim = Schedule.of(tiny_pipe.scheduler)
    pndm = Schedule.of(PNDMScheduler.from_config(tiny_pipe.scheduler.config))
    assert torch.equal(ddim.alphas, pndm.alphas)
    assert ddim.clean == pytest.approx(tiny_pipe.scheduler.final_alpha_cumprod.item())
    assert [ddim.timestep(tau) for tau in (0, 250, 1000)] == [1, 250, 999]


def test_flow_matching_is_refused(tiny_pipe):
    tiny_pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UsageError, match="DDPM family, not through FlowMatchEulerDiscreteScheduler"):
        learn(tiny_pipe)


def test_a_loss_that_is_not_finite_is_an_error(tiny_pipe):
    class Broken(Extractor):
        def forward(self, images):
            return super().forward(images) * torch.nan

    with pytest.raises(PrivgenError, match="not finite at step 0"):
        learn(tiny_pipe, extractor=Broken())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"steps": 0}, "steps >= 1"),
        ({"vectors": 0}, "vectors >= 1"),
        ({"unrolled_steps": 0}, "unrolled_steps >= 1"),
        ({"starts": 0}, "starts >= 1"),
        ({"lr": 0.0}, "lr > 0"),
        ({"lambda_z": -1.0}, "weights >= 0"),
        ({"tau": 2000}, "0..1000"),
        ({"start": "noise"}, "chain or renoise"),
    ],
)
def test_options_refuse_what_makes_no_sense(change, match):
    with pytest.raises(ValueError, match=match):
        OptimiseOptions(**change)


def test_prompts_are_needed_and_must_leave_room(tiny_pipe):
    with pytest.raises(ValueError, match="at least one prompt"):
        learn(tiny_pipe, prompts=[])
    with pytest.raises(UsageError, match="leaves room"):
        learn(tiny_pipe, prompts=["a " * 74])


def test_the_reference_is_the_trajectory_without_the_token(tiny_pipe):
    """For a text encoder to which all prompts are the same, a token changes nothing."""
    assert all(step.latent_loss > 1e-9 for step in learn(tiny_pipe).history)
    encoder = tiny_pipe.text_encoder
    torch.nn.init.zeros_(getattr(encoder, "text_model", encoder).final_layer_norm.weight)
    assert all(step.latent_loss < 1e-12 for step in learn(tiny_pipe).history)
