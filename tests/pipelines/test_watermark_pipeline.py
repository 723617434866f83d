import inspect
import json

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback

from privgen.errors import UsageError
from privgen.pipelines.pipeline_stable_diffusion_watermark import (
    StableDiffusionWatermarkPipeline,
    StableDiffusionWatermarkPipelineOutput,
)
from privgen.watermark.key import Key, Secret
from privgen.watermark.token import Token, issue_token


ALICE, BOB = (Key(name, Secret(bytes([number]) * 32)) for number, name in enumerate(("alice", "bob")))


class TokenMapper(torch.nn.Module):
    """16 bits to 2 vectors of 32 numbers."""

    def __init__(self, **config):
        super().__init__()
        self.config = type("Config", (), {"n_bits": 16, **config})()
        self.table = torch.nn.Parameter(torch.randn(16, 2, 32, generator=torch.Generator().manual_seed(0)))

    def forward(self, bits):
        return torch.einsum("bn,nvd->bvd", 2 * bits - 1, self.table)


class LatentMapper(torch.nn.Module):
    """16 bits to a residual of 4 channels."""

    def __init__(self, channels=4):
        super().__init__()
        self.config = type("Config", (), {"n_bits": 16})()
        self.table = torch.randn(16, channels, 1, 1, generator=torch.Generator().manual_seed(0))

    def forward(self, bits, height=16, width=16):
        return torch.einsum("bn,nchw->bchw", 2 * bits - 1, self.table).expand(-1, -1, height, width)


@pytest.fixture(params=["sd15", "sd21"])
def pipe(tiny, request):
    built = tiny.tiny_pipeline(request.param, StableDiffusionWatermarkPipeline)
    built.token_mapper, built.latent_mapper = TokenMapper(), LatentMapper()
    return built


def generate(pipe, prompt="a cat", seed=0, **options):
    options = {"num_inference_steps": 5, "output_type": "pt", "tau": 401, **options}
    if isinstance(pipe, StableDiffusionPipeline) and not isinstance(pipe, StableDiffusionWatermarkPipeline):
        options.pop("tau")
    options.setdefault("generator", torch.Generator().manual_seed(seed))
    return pipe(prompt, **options)


def latents_of(pipe, **options):
    """Latents after each step."""
    seen = []

    def keep(_pipe, _index, _timestep, tensors):
        seen.append(tensors["latents"].clone())
        return {}

    generate(pipe, callback_on_step_end=keep, output_type="latent", **options)
    return seen


OPTIONS = [
    {},
    {"negative_prompt": "a dog", "guidance_scale": 3.0, "num_images_per_prompt": 2},
    {"guidance_scale": 1.0, "eta": 0.5, "height": 40, "width": 24},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_without_a_key_images_are_those_of_the_plain_pipeline(pipe, options):
    output = generate(pipe, **options)
    plain = generate(StableDiffusionPipeline(**pipe.components, requires_safety_checker=False), **options)
    assert torch.equal(output.images, plain.images)
    assert isinstance(output, StableDiffusionWatermarkPipelineOutput)
    assert (output.key_ids, output.carrier) == (None, None)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_token_changes_images_through_the_timesteps_at_or_below_tau_only(pipe, options):
    without, marked = latents_of(pipe, **options), latents_of(pipe, key=ALICE, **options)
    assert [torch.equal(*pair) for pair in zip(marked, without, strict=True)] == [True, True, False, False, False]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_residual_is_added_after_the_last_step(pipe, options):
    options = {**options, "carrier": "latent", "tau": None}
    plain = generate(pipe, output_type="latent", **options).images
    marked = generate(pipe, output_type="latent", key=ALICE, **options).images
    bits = torch.tensor([ALICE.bits(16)], dtype=torch.float32)
    torch.testing.assert_close(marked - plain, pipe.latent_mapper(bits, *plain.shape[2:]).expand_as(plain))


@pytest.mark.parametrize("carrier", ["token", "latent"])
def test_the_output_says_whose_images_they_are(pipe, carrier):
    output = generate(pipe, ["a cat", "a dog"], carrier=carrier, keys=[ALICE, BOB])
    assert (output.key_ids, output.carrier) == ([ALICE.key_id, BOB.key_id], carrier)
    output = generate(pipe, ["a cat", "a dog"], carrier=carrier, key=ALICE, num_images_per_prompt=2)
    assert output.key_ids == [ALICE.key_id] * 4
    assert len(output.images) == 4
    for key in (ALICE, BOB):
        assert key.secret.hex() not in repr(output.to_tuple())


@pytest.mark.parametrize("options", [{}, {"key": ALICE}])
def test_the_tuple_is_the_output(pipe, options):
    output = generate(pipe, **options)
    images, unsafe, key_ids, carrier, objects = generate(pipe, return_dict=False, **options)
    assert torch.equal(images, output.images)
    assert (unsafe, key_ids, carrier) == (output.nsfw_content_detected, output.key_ids, output.carrier)
    assert objects is output.objects is None


@pytest.mark.parametrize("carrier", ["token", "latent"])
@pytest.mark.parametrize("tau", [401, 1000])
def test_a_batch_equals_its_images_one_by_one(pipe, carrier, tau):
    prompts, keys = ["a cat", "two dogs"], [ALICE, BOB, BOB, ALICE]
    options = {"carrier": carrier, "tau": tau, "output_type": "latent"}
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    batch = generate(pipe, prompts, keys=keys, generator=generators, num_images_per_prompt=2, **options).images
    for index, key in enumerate(keys):
        single = generate(pipe, prompts[index // 2], index, key=key, **options).images
        torch.testing.assert_close(batch[index : index + 1], single, atol=1e-4, rtol=1e-4)


NEGATIVES = [{}, {"negative_prompt": ["a dog", "a hat"]}, {"guidance_scale": 1.0}, {"embeds": True}]


@pytest.mark.parametrize("options", NEGATIVES)
def test_a_token_that_acts_from_the_first_step_on_is_a_word_of_the_prompt(pipe, options):
    token = issue_token(pipe.token_mapper, ALICE)
    prompts = ["a cat", "two dogs"]
    if options.get("embeds"):
        with torch.no_grad():
            options = {"negative_prompt_embeds": pipe.encode_prompt(["a hat", "a dog"], "cpu", 1, False)[0]}
    options = {"num_images_per_prompt": 2, **options}
    marked = generate(pipe, prompts, token=token, tau=1000, **options).images
    pipe.load_textual_inversion({token.name: token.embedding})
    words = [f"{prompt} {token.name}" for prompt in prompts]
    torch.testing.assert_close(marked, generate(pipe, words, **options).images, atol=1e-4, rtol=1e-4)


def test_a_token_of_its_own_is_used_instead_of_the_mappers(pipe):
    token = issue_token(pipe.token_mapper, ALICE, tau=401)
    by_key = generate(pipe, key=ALICE, tau=401).images
    pipe.token_mapper = None
    for options in ({}, {"key": ALICE}):
        output = generate(pipe, token=token, tau=None, **options)
        torch.testing.assert_close(output.images, by_key, atol=1e-4, rtol=1e-4)
        assert output.key_ids == [ALICE.key_id]


def test_tau_comes_from_the_call_else_from_what_the_token_was_made_for(pipe):
    marked = {tau: generate(pipe, key=ALICE, tau=tau).images for tau in (250, 401, 601)}
    assert len({image.sum().item() for image in marked.values()}) == 3
    assert torch.equal(generate(pipe, key=ALICE, tau=None).images, marked[250])
    mapper = TokenMapper(tau=601)
    by_mapper = generate(pipe, key=ALICE, tau=None, token_mapper=mapper).images
    torch.testing.assert_close(by_mapper, marked[601], atol=1e-4, rtol=1e-4)
    token = issue_token(mapper, ALICE)
    by_token = generate(pipe, token=token, tau=None).images
    torch.testing.assert_close(by_token, marked[601], atol=1e-4, rtol=1e-4)


def test_the_callers_own_callbacks_still_run(pipe):
    seen = []

    def own(_pipe, index, _timestep, tensors):
        seen.append((index, sorted(tensors)))
        return {"latents": tensors["latents"] * 0.9}

    generate(pipe, key=ALICE, callback_on_step_end=own)
    assert seen == [(index, ["latents"]) for index in range(5)]
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    assert generate(pipe, key=ALICE, callback_on_step_end=cutoff).images.isfinite().all()


@pytest.mark.parametrize("carrier", ["token", "latent"])
def test_bfloat16_gives_no_nan(pipe, carrier):
    pipe.to(torch.bfloat16)
    images = generate(pipe, key=ALICE, carrier=carrier).images
    assert images.dtype == torch.bfloat16
    assert images.isfinite().all()
    assert not torch.equal(images, generate(pipe).images)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_every_output_type(pipe, output_type):
    images = generate(pipe, key=ALICE, output_type=output_type).images
    assert len(images) == 1


def test_a_saved_pipeline_is_one_of_diffusers_own(pipe, tmp_path):
    before = generate(pipe, key=ALICE).images
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    libraries = {value[0] for value in index.values() if isinstance(value, list)}
    assert libraries == {"diffusers", "transformers", None}
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is StableDiffusionPipeline
    again = StableDiffusionWatermarkPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(generate(again, key=ALICE, token_mapper=pipe.token_mapper).images, before)


def test_the_signature_is_stable_diffusions_and_ours():
    plain = inspect.signature(StableDiffusionPipeline.__call__).parameters
    ours = inspect.signature(StableDiffusionWatermarkPipeline.__call__).parameters
    names = [name for name in plain if name != "kwargs"]
    assert list(ours)[: len(names)] == names
    own = [parameter for name, parameter in ours.items() if name not in plain]
    assert [parameter.name for parameter in own] == [
        "key",
        "keys",
        "carrier",
        "tau",
        "token",
        "token_mapper",
        "latent_mapper",
        "extractor",
        "robust_steps",
        "objects",
        "masks",
    ]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in own)


@pytest.mark.parametrize("fails", ["encoder", "unet"])
def test_the_pipeline_is_left_as_it_was_when_something_fails(pipe, fails, monkeypatch):
    before = generate(pipe, key=ALICE).images
    module = pipe.text_encoder.encoder.layers[0] if fails == "encoder" else pipe.unet
    monkeypatch.setattr(module, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(pipe, key=ALICE)
    monkeypatch.undo()
    assert not pipe.text_encoder.get_input_embeddings()._forward_hooks
    assert torch.equal(generate(pipe, key=ALICE).images, before)


TOKEN = Token(torch.zeros(1, 32), ALICE.key_id)
ERRORS = {
    "both": ({"key": ALICE, "keys": [ALICE]}, UsageError, "either key"),
    "no keys": ({"keys": []}, UsageError, "empty"),
    "too many keys": ({"keys": [ALICE, BOB]}, UsageError, "each of 1 images, got 2"),
    "no key": ({"key": "alice.key"}, UsageError, "expected a Key, got str"),
    "carrier": ({"key": ALICE, "carrier": "pixel"}, UsageError, "'pixel'"),
    "tau": ({"key": ALICE, "tau": 1001}, ValueError, "0..1000"),
    "tau never": ({"key": ALICE, "tau": 0}, ValueError, "at or below tau = 0"),
    "foreign token": ({"key": BOB, "token": TOKEN}, UsageError, "belongs to key"),
    "token of no use": ({"token": TOKEN, "carrier": "latent"}, UsageError, "carrier is latent"),
    "other model's token": ({"token": Token(torch.zeros(1, 8), ALICE.key_id)}, ValueError, "another model"),
    "other model's mapper": (
        {"key": ALICE, "carrier": "latent", "latent_mapper": LatentMapper(8)},
        UsageError,
        "another model",
    ),
    "no room": ({"key": ALICE, "prompt": "a " * 74}, UsageError, "leaves room for"),
    "no words": ({"key": ALICE, "prompt": None, "prompt_embeds": torch.zeros(1, 77, 32)}, UsageError, "prompt itself"),
    "no prompt": ({"key": ALICE, "prompt": None}, ValueError, "Provide either"),
    "typing error": ({"kye": ALICE}, TypeError, "kye"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_is_wrong(tiny, case):
    options, error, match = ERRORS[case]
    pipe = tiny.tiny_pipeline(cls=StableDiffusionWatermarkPipeline)
    pipe.token_mapper, pipe.latent_mapper = TokenMapper(), LatentMapper()
    with pytest.raises(error, match=match):
        generate(pipe, **options)


@pytest.mark.parametrize("carrier", ["token", "latent"])
def test_a_missing_mapper_is_named(tiny, carrier):
    pipe = tiny.tiny_pipeline(cls=StableDiffusionWatermarkPipeline)
    with pytest.raises(UsageError, match=f'{carrier}_mapper = load_extra\\("{carrier}_mapper"'):
        generate(pipe, key=ALICE, carrier=carrier)


@pytest.mark.parametrize("options", [{}, {"negative_prompt": ["a dog", "a hat"]}, {"guidance_scale": 1.0}])
def test_a_negative_token_is_a_word_of_the_negative_prompt(pipe, options):
    pipe.token_mapper.config.complement = True
    token = issue_token(pipe.token_mapper, ALICE)
    prompts = ["a cat", "two dogs"]
    marked = generate(pipe, prompts, key=ALICE, tau=1000, **options).images
    pipe.load_textual_inversion({token.name: token.embedding})
    pipe.load_textual_inversion({"<against>": token.negative})
    negative = [f"{text} <against>".strip() for text in options.get("negative_prompt", ["", ""])]
    words = [f"{prompt} {token.name}" for prompt in prompts]
    expected = generate(pipe, words, **{**options, "negative_prompt": negative}).images
    torch.testing.assert_close(marked, expected, atol=1e-4, rtol=1e-4)
    late = generate(pipe, prompts, key=ALICE, **options).images
    by_token = generate(pipe, prompts, token=token, **options).images
    torch.testing.assert_close(late, by_token, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(late, marked, atol=1e-3)


def test_a_negative_token_needs_the_negative_prompt_itself(pipe):
    pipe.token_mapper.config.complement = True
    with torch.no_grad():
        negative = pipe.encode_prompt(["a hat"], "cpu", 1, False)[0]
    with pytest.raises(UsageError, match="give that as negative_prompt"):
        generate(pipe, key=ALICE, negative_prompt_embeds=negative)
