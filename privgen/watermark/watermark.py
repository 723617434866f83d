"""The front door of watermarks: embed, detect, and mark what a pipeline generates."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from privgen.errors import UsageError
from privgen.hub import Placement
from privgen.io.batches import BatchOptions, names_a_file
from privgen.io.files import refuse_existing, write_bytes
from privgen.io.image_like import open_images
from privgen.provenance.seal import Origin, Seal
from privgen.watermark.key import Key
from privgen.watermark.networks import Networks
from privgen.watermark.objects.choose import object_carrier
from privgen.watermark.objects.in_pipeline import marking_objects
from privgen.watermark.objects.keys import ObjectKeys
from privgen.watermark.objects.masks import open_mask
from privgen.watermark.objects.write import mark_objects, marks_of
from privgen.watermark.read.detection import FPR, Detection, Detector, DetectSpec
from privgen.watermark.read.p_values import Test
from privgen.watermark.read.verify import Verification, verify_file
from privgen.watermark.registry.registry import Registry
from privgen.watermark.token import Token
from privgen.watermark.write.in_pipeline import marking
from privgen.watermark.write.mark_image import mark_loaded, unreadable_note
from privgen.watermark.write.mark_spec import Carrier, KeyMark, MarkSpec
from privgen.watermark.write.marker import Marker


Images = TypeVar("Images")


class Watermark:
    """Marks of keys: embed them in images, detect them, and have a pipeline generate marked images.

    Networks are loaded when they are first needed. The object is picklable: a copy in another process loads the
    networks again by the model's name.

    Args:
        networks: that write and read; most callers use `from_pretrained`.

    Example:
        >>> from PIL import Image
        >>> from privgen import Key, Watermark
        >>> key = Key.new("alice")
        >>> mark = Watermark.from_pretrained("mini")
        >>> image = Image.effect_mandelbrot((256, 256), (-2, -1.5, 1, 1.5), 50).convert("RGB")
        >>> marked = mark.embed(image, key)
        >>> mark.detect(marked, key).detected
        True
    """

    def __init__(self, networks: Networks) -> None:
        self.networks = networks

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = "mini",
        *,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
    ) -> "Watermark":
        """The watermark of a model. Nothing is loaded before it is needed.

        Args:
            model: an embedded model's name, a folder that a pipeline was saved to, or a Hub id. Without networks of
                privgen's in it, which "mini" has, tiles alone are written and read.
            device: see `privgen.hub.resolve_device`.
            dtype: of the pipeline's weights, see `privgen.hub.resolve_dtype`; extractors are always float32.
            revision: branch, tag or commit of a Hub id.
        """
        return cls(Networks(os.fspath(model), Placement(device, dtype), revision))

    def __repr__(self) -> str:
        return f"Watermark({self.networks!r})"

    def embed(
        self,
        images: Images,
        key: Key | Sequence[Key] | None = None,
        *,
        objects: Mapping[str, Key] | None = None,
        masks: Mapping[str, Any] | None = None,
        psnr: float | None = None,
        carrier: Carrier | None = None,
        robust_steps: int = 0,
        check: bool = True,
        payload: int | None = None,
    ) -> Images:
        """Mark images at their own sizes, or objects in one image.

            mark.embed(image, objects={"cat": alice, "dog": bob}, masks={"cat": cat_mask, "dog": "dog.png"})

        Args:
            images: a Pillow image, a path, an array or a tensor; a list of these; or a batch. See
                `privgen.io.image_like.ImagesLike`.
            key: whose mark: one key for all images, or one for each. With objects, the one key for all that is outside
                them; None leaves that as it is, bit for bit.
            objects: the key of each object of one image, by a name of yours.
            masks: of the objects, by the same names: Pillow images, paths, arrays (H, W) or tensors (H, W), light
                where the object is. Where masks overlap, a pixel belongs to the object with the larger value, and to
                the last one of equals.
            psnr: quality of the result against the image, in dB; higher is fainter; None is what suits the carrier, 42
                with a tile and 38.1 without. With objects, the quality inside each mask; None is 31 to 37 for tiles,
                by the object's size, and 29 for the other carriers.
            carrier: what the mark is written with: "tile" needs no network and is found in crops, borders, turned and
                mirrored images; "latent" survives an autoencoder better; "tile+latent" is both; "token" writes with
                text. None is "tile+latent", or "tile" where the model has no networks of privgen's. Objects have
                "tile", the default, "latent" or "token".
            robust_steps: gradient steps that fit the pattern in the latents to its image, so that it survives
                regeneration better. 10 is a good number, and each takes about as long as the whole rest.
            check: read the marks back, and warn of images that cannot carry one, such as an all-white one.
            payload: a number of yours, 0..4294967295, such as the image's in your catalogue, that the tile carries
                besides the key; `detect` returns it. All images and objects of the call get the same one.

        Returns:
            What came in, marked: the same type, size, mode, number type and device. A path gives a Pillow image.

        Warns:
            UserWarning: an image or an object is too small or too plain to carry the mark, or its payload.

        Raises:
            PrivgenError: an image or a network cannot be read.
            UsageError: values that exclude each other, or not as many keys as images.
            ValueError: an array or tensor of another shape, type or range.
        """
        given = open_images(images)
        if objects is not None:
            if not given.single:
                raise UsageError("Masks are of one image; mark the objects of one image at a time.")
            owned = _owners(key, objects, masks, MarkSpec(carrier, psnr, robust_steps=robust_steps, payload=payload))
            pixels, levels = given.images[0].pixels, given.levels[0]
            done = mark_objects(
                pixels,
                marks_of(objects, owned.masks),
                psnr=psnr,
                rest=owned.rest,
                levels=levels,
                check=check,
                carrier=object_carrier(owned.carrier, self.networks, payload),
            )
            for item in done.objects:
                if item.note:
                    warnings.warn(f"{item.name}: {item.note}", stacklevel=2)
            with_objects: Images = given.restore([done.pixels])
            return with_objects
        if masks:
            raise UsageError("Masks are of objects; say with objects which key owns which.")
        if key is None:
            raise UsageError("Say whose mark: give a key, or objects.")
        keys = [key] if isinstance(key, Key) else list(key)
        if len(keys) not in (1, len(given.images)):
            raise UsageError(f"expected one key, or one for each of {len(given.images)} images, got {len(keys)}")
        marker = Marker(self.networks, MarkSpec(carrier, psnr, robust_steps=robust_steps, payload=payload))
        marked = mark_loaded(given.images, given.levels, keys, marker)
        if check:
            owners = keys if len(keys) == len(marked) else keys * len(marked)
            for i, (image, owner) in enumerate(zip(marked, owners, strict=True)):
                for note in unreadable_note(image.pixels, owner, marker)[1]:
                    warnings.warn(f"image {i}: {note}", stacklevel=2)
        restored: Images = given.restore([image.pixels for image in marked])
        return restored

    def detect(
        self,
        images: Any,
        keys: Key | Sequence[Key] | Registry,
        *,
        search: bool = False,
        fpr: float = FPR,
        test: Test = "weighted",
        carrier: Carrier | None = None,
        locate: bool = False,
    ) -> Any:
        """Say whose mark images carry.

        Args:
            images: a Pillow image, a path, an array or a tensor; a list of these; or a batch. See
                `privgen.io.image_like.ImagesLike`.
            keys: the keys to look for; or a registry, all of whose keys are looked for. Its detections list only the
                keys that are detected, and the best; `privgen.watermark.registry.found.records_of` says what it knows
                of them.
            search: also look for marks in what was cut out of a marked image, framed, scaled or turned; takes a second
                or more an image.
            fpr: probability that an unmarked image is called marked, whatever the number of keys.
            test: see `privgen.watermark.read.detection.DetectSpec`.
            carrier: the marks that are looked for; None is all that the model can read, and the tiles of objects.
            locate: also look for marked objects, and say which part of the image belongs to which key. With `search`,
                objects with tiles are also found in crops, and where they were cut out, scaled or turned, and pasted.
                Objects that the carrier "latent" or "token" has marked are found if you name it.

        Returns:
            For one image a `Detection`, with `.detected`, `.key`, `.p_value`, `.payload` and `.regions`, which prints
            as one line; each region has a `.box`, a `.p_value`, a `.payload`, and with `locate` a `.mask`.
            For several a list of them.

        Raises:
            PrivgenError: an image or a network cannot be read.
            UsageError: no key, or a rate that so few bits cannot show.
            ValueError: an array or tensor of another shape, type or range.
        """
        given = open_images(images)
        spec = DetectSpec(fpr, search, test, carrier, locate)
        every = not isinstance(keys, Registry)
        owners = keys.keys() if isinstance(keys, Registry) else [keys] if isinstance(keys, Key) else list(keys)
        detector = Detector(self.networks, owners, spec, every=every)
        found: list[Detection] = detector([image.pixels for image in given.images])
        return found[0] if given.single else found

    def publish(
        self,
        image: Any,
        path: str | os.PathLike[str],
        key: Key,
        *,
        seal: Seal,
        payload: int | None = None,
        psnr: float | None = None,
        marked: bool = False,
        overwrite: bool = False,
    ) -> Path:
        """Mark one image, write its file, label and sign it: in the one order in which all three hold.

        Args:
            image: a Pillow image, a path, an array or a tensor. Content Credentials in the file of a path become a
                part of the new ones.
            path: file to write: PNG, JPEG, WebP, TIFF or AVIF.
            key: whose mark.
            seal: what the file says of its origin, and who signs it.
            payload: see `embed`.
            psnr: see `embed`.
            marked: the image carries the key's mark already, as that of a pipeline inside `on`; it is only named.
            overwrite: replace an existing file.

        Returns:
            The path.

        Raises:
            PrivgenError: a file or network cannot be read, the file exists or cannot be written, or the credentials
                cannot sign.
            UsageError: several images, or a format that holds no label or no signature.
        """
        given, target = open_images(image), Path(path)
        if not given.single or not names_a_file(target):
            raise UsageError("Publish one image as one file of PNG, JPEG, WebP, TIFF or AVIF.")
        refuse_existing(target, overwrite=overwrite)
        [loaded], batch = given.images, BatchOptions(overwrite=overwrite, seal=seal)
        marker = Marker(self.networks, MarkSpec(psnr=psnr, payload=payload))
        if not marked:
            loaded = loaded.with_pixels(mark_loaded([loaded], [2**loaded.bits - 1], [key], marker)[0].pixels)
        parent = batch.parent_of(Path(image), loaded) if isinstance(image, str | os.PathLike) else None
        try:
            data, _ = batch.encode(loaded, target, Origin(marker.spec.bindings(key.key_id), parent))
        except (OSError, ValueError) as error:
            raise UsageError(f"{target} cannot be written: {error}.") from error
        write_bytes(target, data, overwrite=overwrite)
        return target

    def verify(
        self,
        path: str | os.PathLike[str],
        keys: Key | Sequence[Key] | Registry = (),
        *,
        spec: DetectSpec | None = None,
        anchors: str | None = None,
    ) -> Verification:
        """Say what a file proves of its image's origin, by Content Credentials, label and mark.

        Args:
            path: an image file.
            keys: whose marks to look for; none looks for no mark. A registry also says what it knows of them.
            spec: how they are looked for.
            anchors: certificates in PEM whose signatures you trust, such as C2PA's trust list.

        Raises:
            PrivgenError: the file or a network cannot be read.
        """
        registry = keys if isinstance(keys, Registry) else None
        owners = keys.keys() if isinstance(keys, Registry) else [keys] if isinstance(keys, Key) else list(keys)
        detector = Detector(self.networks, owners, spec, every=registry is None) if owners else None
        return verify_file(path, detector, anchors=anchors, registry=registry)

    @contextmanager
    def on(
        self,
        pipe: Any,
        key: Key | Token | Sequence[Key] | None = None,
        *,
        objects: Mapping[str, Key] | None = None,
        masks: Mapping[str, Any] | None = None,
        carrier: Carrier | None = None,
        tau: float | None = None,
        robust_steps: int = 0,
        psnr: float | None = None,
        payload: int | None = None,
    ) -> Iterator[Any]:
        """Have a pipeline mark all images that it generates inside the block, or objects in them.

            with mark.on(pipe, key):
                images = pipe("a cat").images

            with mark.on(pipe, objects={"cat": alice, "pineapple": bob}):
                output = pipe("a cat and a pineapple on a blue background")
            output.images[0]
            output.objects[0][0].mask  # where the cat is, (height, width)

        The pipeline is as before when the block ends, also after an exception. Without the mark, images are bit for
        bit those of the pipeline; so is all that is outside the slightly grown masks of objects.

        Args:
            pipe: any Diffusers text-to-image pipeline that decodes latents; for the carrier "latent", its autoencoder
                has the latents that the networks were made for; for the carrier "token", and with `tau`, it is of the
                Stable Diffusion 1 or 2 family; for objects without masks, of a family of `privgen.models.family`.
            key: whose mark: one key for all images, or one for each image of a call, in their order. A token writes
                the mark of its own key. With objects, the one key for all that is outside them; None leaves that as
                it is.
            objects: the key of each object, by the word of the prompt that names it. Attention to the word says where
                the object is, and its mark is written there. Outputs of the pipeline get an attribute more, `objects`:
                for each image a tuple of `privgen.watermark.objects.in_pipeline.GeneratedObject`, with `.mask`,
                `.area` and `.p_value`.
            masks: masks of objects, by the same words, which are used instead of attention: Pillow images, paths,
                arrays (H, W) or tensors (H, W), light where the object is.
            carrier: "latent" adds a pattern to the latents, "token" lets text write the mark, "tile" adds a pattern to
                the decoded image, "tile+latent" both patterns. None is the model's own choice, or "tile" where the
                model has no networks of privgen's. Objects have "tile", the default, "latent" or "token".
            tau: the mark acts on timesteps t <= tau, of 1000; None is what suits the carrier.
            robust_steps: see `embed`.
            psnr: quality of the tile, in dB; None is 42. With objects, the quality inside each mask; None is 31 to 37
                for tiles, by the object's size, and 29 for the other carriers.
            payload: a number of yours, 0..4294967295, that the tile of each image or object carries besides the key;
                `detect` returns it. Without a carrier, the model's own choice gets a tile too.

        Yields:
            The pipeline.

        Raises:
            PrivgenError: a network or a mask cannot be read.
            UsageError: a pipeline that cannot be marked so, a word that is not in the prompt, or values that exclude
                each other.
        """
        spec = MarkSpec(carrier, psnr, tau=tau, robust_steps=robust_steps, payload=payload)
        if objects is not None:
            owned = _owners(key, objects, masks, spec)
            code = None if owned.carrier == "tile" else self.networks.object_code
            with marking_objects(pipe, owned, code):
                yield pipe
            return
        if masks:
            raise UsageError("Masks are of objects; say with objects which key owns which.")
        token = key if isinstance(key, Token) else None
        keys = [] if key is None or isinstance(key, Token) else [key] if isinstance(key, Key) else list(key)
        with marking(pipe, keys, self.networks, spec, token):
            yield pipe


def _owners(
    rest: Key | Token | Sequence[Key] | None, keys: Mapping[str, Key], masks: Mapping[str, Any] | None, spec: MarkSpec
) -> ObjectKeys:
    """Which key owns which object, if that can be written as a spec says."""
    if not isinstance(rest, Key | None):
        raise UsageError("With objects, key is the one key for all that is outside them, or None.")
    opened = {name: open_mask(mask) for name, mask in (masks or {}).items()}
    owners = KeyMark(None, spec, objects=ObjectKeys(keys, opened, rest, spec.psnr, spec.payload)).objects
    assert owners is not None
    return owners
