"""XMP data: read and write properties, and leave all others as they are.

XMP is RDF in XML. A property is an element in a description, or an attribute of one; a list is an element that holds
`rdf:Seq`. Source: XMP specification part 1 (ISO 16684-1:2019), clause 7.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from lxml import etree


Value: TypeAlias = str | list[str]
"""A text, or an ordered list of texts."""

_X, _RDF = "adobe:ns:meta/", "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_BEGIN, _END = b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>', b'<?xpacket end="w"?>'


def write_properties(xmp: bytes | None, properties: Mapping[str, Value], namespaces: Mapping[str, str]) -> bytes:
    """Write properties into XMP data.

    Args:
        xmp: XMP packet; None, or a damaged one, is replaced by a new one.
        properties: by name, with the prefix of their namespace, such as "dc:creator". Old values are replaced.
        namespaces: URI of each prefix.

    Returns:
        The packet.
    """
    root = _parsed(xmp)
    rdf = None if root is None else _rdf(root)
    if root is None or rdf is None:
        root = etree.Element(f"{{{_X}}}xmpmeta", nsmap={"x": _X})
        rdf = etree.SubElement(root, f"{{{_RDF}}}RDF", nsmap={"rdf": _RDF})
    names = {_qualified(name, namespaces) for name in properties}
    for description in rdf.findall(f"{{{_RDF}}}Description"):
        for name in names:
            description.attrib.pop(name, None)
            for element in description.findall(name):
                description.remove(element)
    used = {name.partition(":")[0] for name in properties}
    description = etree.SubElement(
        rdf, f"{{{_RDF}}}Description", nsmap={prefix: uri for prefix, uri in namespaces.items() if prefix in used}
    )
    description.set(f"{{{_RDF}}}about", "")
    for name, value in properties.items():
        element = etree.SubElement(description, _qualified(name, namespaces))
        if isinstance(value, str):
            element.text = value
            continue
        items = etree.SubElement(element, f"{{{_RDF}}}Seq")
        for text in value:
            etree.SubElement(items, f"{{{_RDF}}}li").text = text
    return _BEGIN + bytes(etree.tostring(root, encoding="utf-8")) + _END


def read_properties(xmp: bytes | None, names: Sequence[str], namespaces: Mapping[str, str]) -> dict[str, Value]:
    """Read properties of XMP data.

    Args:
        xmp: XMP packet; None, or a damaged one, has no properties.
        names: of the properties, with the prefix of their namespace.
        namespaces: URI of each prefix.

    Returns:
        The values of those that are there, by name.
    """
    root = _parsed(xmp)
    rdf = None if root is None else _rdf(root)
    found: dict[str, Value] = {}
    if rdf is None:
        return found
    for description in rdf.findall(f"{{{_RDF}}}Description"):
        for name in names:
            qualified = _qualified(name, namespaces)
            if (text := description.get(qualified)) is not None:
                found[name] = text
            if (element := description.find(qualified)) is not None:
                items = [item.text or "" for item in element.iter(f"{{{_RDF}}}li")]
                found[name] = items or element.get(f"{{{_RDF}}}resource") or element.text or ""
    return found


def _parsed(xmp: bytes | None) -> Any:
    """The root of XMP data; None if there is none that can be read. Entities are not resolved: they can hold bombs."""
    if not xmp:
        return None
    try:
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_pis=True)
        return etree.fromstring(xmp.strip(b"\0 \t\r\n\xef\xbb\xbf"), parser)
    except (etree.XMLSyntaxError, ValueError):
        return None


def _rdf(root: Any) -> Any:
    return root if root.tag == f"{{{_RDF}}}RDF" else root.find(f"{{{_RDF}}}RDF")


def _qualified(name: str, namespaces: Mapping[str, str]) -> str:
    prefix, _, local = name.partition(":")
    return f"{{{namespaces[prefix]}}}{local}"
