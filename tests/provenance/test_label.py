"""Labels: what is written is read back by us and by another reader, and nothing else in the XMP data changes."""

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from privgen import Label, UsageError
from privgen.io.images import save_image
from privgen.provenance.label import AI_MADE, read_label, write_label
from privgen.provenance.xmp import read_properties


FULL = Label(AI_MADE, "Acme & Co", "mini", "1.0", "2026-11-28T10:00:00+00:00", "urn:uuid:1", "Ada <ada>", "Acme/Ada")
CAMERA = b"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:crs="http://example.com/crs/"
  xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" photoshop:Credit="Old" crs:Exposure="+1.5">
<dc:creator><rdf:Seq><rdf:li>Bob</rdf:li></rdf:Seq></dc:creator></rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
BOMB = b"""<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/"><photoshop:Credit>&b;</photoshop:Credit></rdf:Description>
</rdf:RDF>"""

texts = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=20)


@given(st.builds(Label, *[texts] * 8).filter(lambda label: "/" not in label.source_type))
def test_a_label_is_read_back(label):
    assert read_label(write_label(None, label)) == label


def test_other_properties_and_prefixes_stay():
    packet = write_label(CAMERA, Label(credit="New"))
    assert read_label(packet) == Label(creator="Bob", credit="New")
    assert read_properties(packet, ["crs:Exposure"], {"crs": "http://example.com/crs/"}) == {"crs:Exposure": "+1.5"}
    assert b"crs:Exposure" in packet
    assert b"Old" not in packet


@pytest.mark.parametrize("damaged", [b"", b"<x", b"\xff\xfe", b"<a/>", CAMERA[:300]])
def test_damaged_xmp_is_replaced(damaged):
    assert read_label(damaged) == Label()
    assert read_label(write_label(damaged, FULL)) == FULL


def test_entities_are_not_expanded():
    assert read_label(BOMB).credit == ""


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31mred", "\0"])
def test_texts_that_do_not_print_are_refused(text):
    with pytest.raises(UsageError, match="creator"):
        Label(creator=text)


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_exiftool_reads_the_label(tmp_path, suffix):
    from privgen.io.images import from_pil
    from privgen.io.metadata import Metadata

    image = from_pil(Image.new("RGB", (32, 32), "red"))
    object.__setattr__(image, "metadata", Metadata(xmp=write_label(None, FULL)))
    path = save_image(image, tmp_path / f"a{suffix}")
    names = ("DigitalSourceType", "Source", "AISystemUsed", "AISystemVersionUsed", "DigitalImageGUID", "Creator")
    command = ["exiftool", "-s3", "-n", *(f"-XMP:{name}" for name in (*names, "Credit")), str(path)]
    read = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert read[0].endswith(AI_MADE)
    assert read[1:] == [FULL.provider, FULL.system, FULL.system_version, FULL.identifier, FULL.creator, FULL.credit]
