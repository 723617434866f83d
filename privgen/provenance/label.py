"""Labels: metadata that says a machine made an image, with which system, for whom and when.

A label is written as XMP data, in the properties of the IPTC. It is not protected: anybody can change or remove it.
Content Credentials (`privgen.provenance.content_credentials`) repeat it under a signature.

Sources: IPTC Photo Metadata Standard 2025.1 (Digital Source Type, Digital Image GUID, AI System Used, AI System
Version Used, Creator, Credit Line, Source); XMP specification part 1 (ISO 16684-1:2019).
"""

from dataclasses import dataclass, fields, replace
from typing import Literal, TypeAlias, get_args

from privgen.errors import UsageError, quoted
from privgen.provenance.xmp import Value, read_properties, write_properties


Preset: TypeAlias = Literal["eu-ai-act", "sb-942"]
"""A law whose list of facts a label covers: Article 50(2) of the EU AI Act, or California's SB 942."""

PRESETS: tuple[Preset, ...] = get_args(Preset)

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
"""Where the IPTC lists how digital images come about."""

AI_MADE, AI_EDITED = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
"""Source types of images that a trained model has made, wholly or in part."""

NAMESPACES = {
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "dc": "http://purl.org/dc/elements/1.1/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
}

_PROPERTIES = {
    "source_type": "Iptc4xmpExt:DigitalSourceType",
    "identifier": "Iptc4xmpExt:DigImageGUID",
    "system": "Iptc4xmpExt:AISystemUsed",
    "system_version": "Iptc4xmpExt:AISystemVersionUsed",
    "created": "xmp:CreateDate",
    "provider": "photoshop:Source",
    "creator": "dc:creator",
    "credit": "photoshop:Credit",
}
_SAID = ("provider", "created", "identifier", "creator", "credit")  # in words, by their names
_LISTS = frozenset({"dc:creator"})  # ordered lists of XMP; all else is one text


@dataclass(frozen=True)
class Label:
    """What a label says. An empty text says nothing, and leaves what the image says already.

    Example:
        >>> from privgen import Label
        >>> Label("trainedAlgorithmicMedia", provider="Acme", system="mini").words()
        'made by AI, system "mini", provider "Acme"'

    Attributes:
        source_type: how the image came about, a name from `SOURCE_TYPES`, such as "trainedAlgorithmicMedia".
        provider: who offers the system that made the image.
        system: name of that system.
        system_version: its version.
        created: when the image was made, ISO 8601.
        identifier: that no other image has.
        creator: who is to be named as the author.
        credit: line to print beside the image.
    """

    source_type: str = ""
    provider: str = ""
    system: str = ""
    system_version: str = ""
    created: str = ""
    identifier: str = ""
    creator: str = ""
    credit: str = ""

    def __post_init__(self) -> None:
        for name, text in vars(self).items():
            if any(not character.isprintable() for character in text):
                raise UsageError(f"The label's {name.replace('_', ' ')} holds characters that do not print; use text.")

    @property
    def is_ai(self) -> bool:
        """Whether it says that a trained model made the image, wholly or in part."""
        return self.source_type in (AI_MADE, AI_EDITED)

    def complete(self, preset: Preset) -> None:
        """Check that it holds the facts that a law lists.

        Raises:
            UsageError: one is missing.
        """
        needed = ["source_type", "identifier"]
        if preset == "sb-942":
            needed += ["provider", "system", "system_version", "created"]
        if missing := [name for name in needed if not getattr(self, name)]:
            say = ", ".join(f"{name}=TEXT" for name in missing)
            raise UsageError(f"A label for {preset} also says {say}: with --say, or as values of Label.")

    def properties(self) -> dict[str, Value]:
        """What it says, by the names of XMP properties."""
        said = {_PROPERTIES[name]: text for name, text in vars(self).items() if text}
        if self.source_type:
            said[_PROPERTIES["source_type"]] = SOURCE_TYPES + self.source_type
        return {name: [text] if name in _LISTS else text for name, text in said.items()}

    def words(self) -> str:
        """What it says, as a sentence without a full stop; empty if it says nothing."""
        if not any(text for name, text in vars(self).items() if name != "created"):
            return ""
        kinds = {AI_MADE: "made by AI", AI_EDITED: "made with AI in part", "": "does not say how it was made"}
        said = [kinds.get(self.source_type, f"of the kind {quoted(self.source_type)}")]
        said += [f"system {quoted(f'{self.system} {self.system_version}'.strip())}"] if self.system else []
        said += [f"{name} {quoted(text)}" for name in _SAID if (text := getattr(self, name))]
        return ", ".join(said)


def write_label(xmp: bytes | None, label: Label) -> bytes:
    """Write a label into XMP data, and keep all else that it says.

    Args:
        xmp: XMP packet of an image; None if there is none. A damaged one is replaced.
        label: what to say.
    """
    return write_properties(xmp, label.properties(), NAMESPACES)


def read_label(xmp: bytes | None) -> Label:
    """Read what XMP data says of an image's origin.

    Args:
        xmp: XMP packet of an image; None or a damaged one gives an empty label.
    """
    found = read_properties(xmp, list(_PROPERTIES.values()), NAMESPACES)
    texts = {}
    for field in fields(Label):
        value = found.get(_PROPERTIES[field.name], "")
        text = ", ".join(value) if isinstance(value, list) else value
        texts[field.name] = "".join(character for character in text if character.isprintable()).strip()
    return replace(Label(**texts), source_type=texts["source_type"].rpartition("/")[2])
