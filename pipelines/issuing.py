"""Generate images that each carry an ID of their own, which a registry records."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from privgen.diffusion.sampling import Sampling
from privgen.errors import UsageError
from privgen.io.batches import BatchOptions, names_a_file
from privgen.io.fingerprints import file_fingerprint, settings_fingerprint
from privgen.pipelines.generation import GeneratedImage, GeneratedImages, generate_files
from privgen.watermark.networks import Networks
from privgen.watermark.registry.issuer import Issuer
from privgen.watermark.write.mark_spec import KeyMark, MarkSpec


def generate_issued(
    prompt: str,
    output: Path,
    issuer: Issuer,
    *,
    seeds: Sequence[int] = (0,),
    networks: Networks | None = None,
    sampling: Sampling | None = None,
    spec: MarkSpec | None = None,
    batch: BatchOptions | None = None,
) -> GeneratedImages:
    """Generate images one after the other, each with an ID of its own in its mark.

    If you repeat the call, images that are there as they were made are skipped, and the others get the IDs that they
    got before.

    Args:
        prompt: see `privgen.pipelines.generation.generate_files`.
        output: file of the image; for several images a folder, in which the files are named by seed.
        issuer: issues the IDs with its key.
        seeds: one for each image.
        networks: the model's networks, by default those of mini.
        sampling: how to sample images.
        spec: how the mark is written; without a payload.
        batch: how to write files.

    Raises:
        UsageError: a payload, an output that does not fit the number of images, or what `generate_files` says.
        PrivgenError: see `generate_files`.
    """
    networks, spec = networks or Networks(safety_checker=True), spec or MarkSpec()
    if spec.payload is not None:
        raise UsageError("Each image gets an ID from the registry; leave the payload out.")
    if len(seeds) > 1 and names_a_file(output):
        raise UsageError(f"{output} is a file, and there are {len(seeds)} images; name a folder for them.")
    spec = replace(spec, payload=0).or_carrier(networks.default_carrier)
    images, batch = list[GeneratedImage](), batch or BatchOptions()
    notes: tuple[str, ...] = ()
    how = asdict(replace(sampling or Sampling(), batch_size=None))  # an image does not depend on its batch
    settings = (prompt, str(networks.model), how, asdict(spec), batch.made_by())
    for seed in seeds:
        target = output if len(seeds) == 1 else output / f"{seed:04d}.png"
        issued = issuer.issue(target, settings_fingerprint(seed, *settings), target.name)
        if issued.output_sha256 is not None and issued.output_sha256 == file_fingerprint(target):
            images.append(GeneratedImage(str(target), seed, "skipped"))
            continue
        mark = KeyMark(issuer.key, replace(spec, payload=issued.payload))
        made = generate_files(
            prompt,
            target,
            seeds=[seed],
            networks=networks,
            sampling=sampling,
            mark=mark,
            batch=issuer.batch_for(batch, issued),
        )
        issuer.registry.record_output(issued, file_fingerprint(target))
        images += made.images
        notes = made.notes
    key = issuer.key
    return GeneratedImages(prompt, str(networks.model), key.name, key.key_id, spec.carrier, tuple(images), notes)
