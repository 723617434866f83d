"""Content Credentials (C2PA): sign the content of an image file, and read who signed it and whether it changed since.

All cryptography is that of c2pa-rs, through c2pa-python. Nothing is fetched from the network, except the time stamp
that credentials ask for.

Source: C2PA specification 2.2 (2025).
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from privgen.errors import PrivgenError, quoted
from privgen.io.files import check_regular
from privgen.provenance.claim import ALGORITHMS, PARENT, Claim, SoftBinding
from privgen.provenance.credentials import Credentials, needs_c2pa
from privgen.provenance.label import AI_MADE, Label


MIME_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "WEBP": "image/webp",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
    "HEIF": "image/heif",
    "GIF": "image/gif",
}
"""Type of each format that can hold credentials, by the name that Pillow gives the format."""

State = Literal["valid", "changed", "invalid", "none", "unreadable", "recovered"]

_CHANGED = ("assertion.dataHash.mismatch", "assertion.bmffHash.mismatch", "assertion.boxesHash.mismatch")
_WHO = ("signingCredential.untrusted",)
_CONFIG: dict[str, Any] = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}


@dataclass(frozen=True)
class Parent:
    """A file that the signed one was made from, as the signer's software found it.

    Attributes:
        title: of the file.
        state: "valid": it had Content Credentials, and was as it was signed; "changed" or "invalid": it had some that
            did not hold; "none": it had none.
        signer: name in their certificate.
        bindings: the marks that they name.
    """

    title: str
    state: State
    signer: str = ""
    bindings: tuple[SoftBinding, ...] = ()

    def words(self) -> str:
        """What is known of it, in words."""
        states = {
            "valid": "unchanged since",
            "changed": "which had changed since",
            "none": "without Content Credentials",
        }
        state = states.get(self.state, "with Content Credentials that did not hold")
        signed = f"signed by {quoted(self.signer)}, " if self.state in ("valid", "changed") else ""
        return f"{quoted(self.title)}, {signed}{state}"


@dataclass(frozen=True)
class FoundCredentials:
    """What a file's Content Credentials say, and whether it is so.

    Attributes:
        state: "valid": they are whole, and the file did not change since; "changed": they are whole, but the file
            changed; "invalid": they are not whole; "none": there are none; "unreadable": the packages to read them are
            missing, or the format cannot hold any; "recovered": a registry kept them, and they are whole.
        trusted: whether the signer's certificate goes back to one that you trust.
        signer: name in the certificate.
        organisation: of the signer, in the certificate.
        signed_at: time stamp of an authority, ISO 8601; None if there is none.
        time_trusted: whether you trust that authority, too.
        actions: what was done to the image, by C2PA's names.
        source_type: how the image came about, as the credentials say; empty if they do not.
        bindings: the marks that the image carries, as the credentials say.
        parents: the files that the image was made from.
        manifest: their name, a URN.
        problems: what is wrong, one sentence each.
    """

    state: State
    trusted: bool = False
    signer: str = ""
    organisation: str = ""
    signed_at: str | None = None
    time_trusted: bool = False
    actions: tuple[str, ...] = ()
    source_type: str = ""
    bindings: tuple[SoftBinding, ...] = ()
    parents: tuple[Parent, ...] = ()
    manifest: str = ""
    problems: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether somebody signed the file as it is."""
        return self.state == "valid"

    def words(self) -> str:
        """What they prove, in sentences."""
        if self.state == "none":
            return "none. The file never had any, or they were removed."
        if self.state == "unreadable":
            return f"not read. {' '.join(self.problems)}"
        if self.state == "invalid":
            return f"not valid, so they prove nothing. {' '.join(self.problems)}"
        organisation = f" ({quoted(self.organisation)})" if self.organisation else ""
        when = " without a time stamp"
        if self.signed_at:
            trust = "trust" if self.time_trusted else "do not trust"
            when = f" with a time stamp of {self.signed_at} by an authority that you {trust}"
        signed = f"signed by {quoted(self.signer)}{organisation}{when}"
        who = "You trust the certificate."
        if not self.trusted:
            who = "Nobody whom you trust vouches for the certificate: anybody could have made it."
        if self.state == "recovered":
            return f"recovered: {signed}. {who} They are of the file that was published, not of this one."
        if self.state == "changed":
            return f"no longer valid: the file changed after it was {signed}. {who}"
        return f"valid: {signed}. {who} The file has not changed since."


def sign(
    data: bytes,
    kind: str,
    claim: Claim,
    credentials: Credentials,
    keep: Callable[[bytes], None] | None = None,
) -> bytes:
    """Sign the content of an image file.

    Args:
        data: the content, with marks and metadata written already; what changes afterwards breaks the signature.
        kind: format of the file, a name from `MIME_TYPES`.
        claim: what is signed.
        credentials: who signs.
        keep: called with the manifest store, to keep it where the mark leads back to it.

    Returns:
        The content with Content Credentials in it.

    Raises:
        PrivgenError: the extra c2pa is missing, the format cannot hold credentials, or the signature fails, for
            example because a certificate has expired or a time-stamping authority does not answer.
    """
    needs_c2pa()
    import c2pa

    if kind not in MIME_TYPES:
        raise PrivgenError(f"{kind} files hold no Content Credentials; write PNG, JPEG, WebP, TIFF or AVIF.")
    signed = io.BytesIO()
    try:
        builder = c2pa.Builder(claim.manifest(), context=c2pa.Context.from_dict(_CONFIG))
        if claim.parent is not None:
            content, parent_kind = claim.parent
            about = {"title": "source", "relationship": "parentOf", "instance_id": PARENT}
            builder.add_ingredient(about, MIME_TYPES.get(parent_kind, "application/octet-stream"), io.BytesIO(content))
        manifest = builder.sign(_signer(credentials), MIME_TYPES[kind], io.BytesIO(data), signed)
    except c2pa.C2paError as error:
        raise PrivgenError(f"The credentials {credentials.name} cannot sign: {_sentence(error)}.") from error
    if keep is not None:
        keep(manifest)
    return signed.getvalue()


def read(path: str | Path, *, anchors: str | None = None) -> FoundCredentials:
    """Read the Content Credentials of an image file, and check them.

    Args:
        path: the file.
        anchors: certificates in PEM that you trust, such as the roots of C2PA's trust list.

    Raises:
        PrivgenError: the file cannot be read.
    """
    try:
        check_regular(path)
        data = Path(path).read_bytes()
    except OSError as error:
        raise PrivgenError(f"{path} cannot be read: {error.strerror}; check the path.") from error
    kind = _kind(data)
    try:
        needs_c2pa()
    except PrivgenError as error:
        return FoundCredentials("unreadable", problems=(str(error),))
    return FoundCredentials("none") if kind is None else _read(data, MIME_TYPES[kind], anchors)


def recover(manifest: bytes, *, anchors: str | None = None) -> FoundCredentials:
    """Read Content Credentials that were kept apart from their file.

    Args:
        manifest: the manifest store that `sign` has handed over.
        anchors: see `read`.

    Returns:
        What they say. Their state is "recovered" if they are whole: without their file, nothing more can be checked.
    """
    needs_c2pa()
    found = _read(manifest, "application/c2pa", anchors)
    return replace(found, state="recovered", problems=()) if found.state in ("changed", "valid") else found


def _read(data: bytes, mime: str, anchors: str | None) -> FoundCredentials:
    import c2pa

    trust: Mapping[str, Any] = {} if anchors is None else {"trust": {"user_anchors": anchors}}
    try:
        reader = c2pa.Reader(mime, io.BytesIO(data), context=c2pa.Context.from_dict({**_CONFIG, **trust}))
        document, state = json.loads(reader.json()), str(reader.get_validation_state())
    except c2pa.C2paError.ManifestNotFound:
        return FoundCredentials("none")
    except c2pa.C2paError as error:
        return FoundCredentials("invalid", problems=(f"They cannot be read: {_sentence(error)}.",))
    try:
        return _found(document, state)
    except (AttributeError, TypeError, ValueError):  # a signer can sign any types; none may end a program
        return FoundCredentials("invalid", problems=("What they say is malformed.",))


def check_signs(credentials: Credentials) -> None:
    """Sign a small image, without a time stamp, to see whether credentials are fit for it.

    Raises:
        PrivgenError: they are not; the message says why.
    """
    picture = io.BytesIO()
    Image.new("RGB", (16, 16)).save(picture, "PNG")
    sign(picture.getvalue(), "PNG", Claim("test", Label(AI_MADE)), replace(credentials, time_stamps=None))


def _found(document: Mapping[str, Any], state: str) -> FoundCredentials:
    """What the report of c2pa-rs says."""
    manifest = document.get("manifests", {}).get(document.get("active_manifest", ""), {})
    results = document.get("validation_results", {}).get("activeManifest", {})
    failures = results.get("failure", [])
    serious = [failure for failure in failures if failure.get("code") not in _WHO]
    changed = bool(serious) and all(failure.get("code") in _CHANGED for failure in serious)
    signature = manifest.get("signature_info", {})
    actions = list(_actions(manifest))
    sources = [str(action.get("digitalSourceType", "")).rpartition("/")[2] for action in actions]
    return FoundCredentials(
        state="changed" if changed else "valid" if state in ("Valid", "Trusted") else "invalid",
        trusted=state == "Trusted" or (changed and len(serious) == len(failures)),
        signer=str(signature.get("common_name", "")),
        organisation=str(signature.get("issuer", "")),  # as c2pa-rs calls the organisation of the subject
        signed_at=signature.get("time"),
        time_trusted=any(item.get("code") == "timeStamp.trusted" for item in results.get("success", [])),
        actions=tuple(str(action.get("action", "")) for action in actions),
        source_type=next((source for source in reversed(sources) if source), ""),
        bindings=tuple(_bindings(manifest)),
        parents=tuple(_parent(item, document) for item in manifest.get("ingredients", [])),
        manifest=str(document.get("active_manifest", "")),
        problems=tuple(f"{str(f.get('explanation') or f.get('code')).capitalize()}." for f in serious),
    )


def _parent(ingredient: Mapping[str, Any], document: Mapping[str, Any]) -> Parent:
    """What the report of c2pa-rs says of a file that the signed one was made from."""
    title, label = str(ingredient.get("title", "")), ingredient.get("active_manifest")
    if label is None:
        return Parent(title, "none")
    manifest = document.get("manifests", {}).get(label, {})
    failures = ingredient.get("validation_results", {}).get("activeManifest", {}).get("failure", [])
    codes = {failure.get("code") for failure in failures} - set(_WHO)
    state: State = "valid" if not codes else "changed" if codes <= set(_CHANGED) else "invalid"
    return Parent(
        title, state, str(manifest.get("signature_info", {}).get("common_name", "")), tuple(_bindings(manifest))
    )


def _actions(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for assertion in manifest.get("assertions", []):
        if str(assertion.get("label", "")).startswith("c2pa.actions"):
            yield from assertion.get("data", {}).get("actions", [])


def _bindings(manifest: Mapping[str, Any]) -> Iterator[SoftBinding]:
    """The soft bindings that are privgen's."""
    kinds = {algorithm: kind for kind, algorithm in ALGORITHMS.items()}
    for assertion in manifest.get("assertions", []):
        data = assertion.get("data", {})
        if not str(assertion.get("label", "")).startswith("c2pa.soft-binding") or data.get("alg") not in kinds:
            continue
        for block in data.get("blocks", []):
            yield SoftBinding.of_block(block, kinds[data["alg"]])


def _signer(credentials: Credentials) -> Any:
    import c2pa

    algorithm, chain = credentials.algorithm(), credentials.certificates
    if credentials.service is not None:
        known = c2pa.C2paSigningAlg[algorithm.upper()]
        return c2pa.Signer.from_callback(credentials.service, known, chain, credentials.time_stamps)
    key = (credentials.private_key or "").encode()
    return c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm.encode(), chain.encode(), key, credentials.time_stamps))


def _kind(data: bytes) -> str | None:
    """The format of a file by its first bytes; None if it can hold no credentials."""
    brand = data[8:12]
    if data[4:8] == b"ftyp":
        return "AVIF" if brand in (b"avif", b"avis") else "HEIF"
    if data[:4] == b"RIFF" and brand == b"WEBP":
        return "WEBP"
    heads = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"GIF8": "GIF"}
    return next((kind for head, kind in heads.items() if data.startswith(head)), None)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
