"""Content Credentials: an independent reader agrees, every change is noticed, and private keys stay private."""

import io
import json
import pickle
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from PIL import Image

from privgen import Credentials, Label, PrivgenError, Seal, UsageError
from privgen.io.batches import BatchOptions
from privgen.io.images import from_pil, load_image
from privgen.io.metadata import CREDENTIALS_NOTE
from privgen.provenance.claim import Claim, SoftBinding
from privgen.provenance.content_credentials import read, sign
from privgen.provenance.label import AI_MADE
from privgen.provenance.seal import Origin


c2pa = pytest.importorskip("c2pa", reason="needs the extra c2pa")

FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "TIFF": "tif", "AVIF": "avif"}
LABEL = Label(AI_MADE, "Acme", "mini", "1")
CAT = SoftBinding("00112233aabbccdd", 7, "tile", "cat", (0.25, 0.5, 0.75, 1.0))


@pytest.fixture(scope="module")
def alice():
    return Credentials.new("alice")


def photo(kind="PNG"):
    file = io.BytesIO()
    Image.effect_mandelbrot((64, 48), (-2, -1.5, 1, 1.5), 20).convert("RGB").save(file, kind)
    return file.getvalue()


def written(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_another_reader_agrees(tmp_path, alice, kind):
    claim = Claim("a", LABEL, [SoftBinding("00112233aabbccdd", 7), CAT])
    path = written(tmp_path / f"a.{FORMATS[kind]}", sign(photo(kind), kind, claim, alice))
    reader = c2pa.Reader(str(path))
    manifest = json.loads(reader.json())["manifests"]
    assertions = {item["label"]: item["data"] for item in next(iter(manifest.values()))["assertions"]}
    created, marked = assertions["c2pa.actions.v2"]["actions"]
    assert reader.get_validation_state() == "Valid"
    assert created["action"] == "c2pa.created"
    assert created["digitalSourceType"].endswith(AI_MADE)
    assert marked["action"] == "c2pa.watermarked.bound"
    whole, cat = assertions["c2pa.soft-binding"]["blocks"]
    assert (whole["value"], whole["scope"]) == ("00112233aabbccdd:7", {})
    shape = cat["scope"]["region"]["region"][0]["shape"]
    assert (shape["origin"], shape["width"], shape["height"]) == ({"x": 25, "y": 50}, 50, 50)
    assert "thumbnail" not in next(iter(manifest.values()))
    with Image.open(path) as image, Image.open(io.BytesIO(photo(kind))) as plain:
        assert image.tobytes() == plain.tobytes()  # a signature is no change of the pixels


@pytest.mark.parametrize("kind", FORMATS)
def test_we_read_what_we_signed_and_whom_we_trust(tmp_path, alice, kind):
    path = written(tmp_path / "a", sign(photo(kind), kind, Claim("a", LABEL, [CAT]), alice))
    found = read(path)
    assert (found.state, found.trusted, found.signer, found.source_type) == ("valid", False, "alice", AI_MADE)
    assert found.bindings == (CAT,)
    assert read(path, anchors=alice.root()).trusted
    assert not read(path, anchors=Credentials.new("alice").root()).trusted  # a chain of the same names


def test_every_changed_pixel_is_noticed(tmp_path, alice):
    data = bytearray(sign(photo("TIFF"), "TIFF", Claim("a", LABEL), alice))
    for place in (20, 1000, 5000):  # uncompressed samples come first
        data[place] ^= 1
        found = read(written(tmp_path / "a.tif", bytes(data)))
        assert found.state == "changed"
        assert "changed" in found.words()
        data[place] ^= 1
    assert read(written(tmp_path / "a.tif", bytes(data))).state == "valid"


def test_credentials_moved_to_another_image_do_not_hold(tmp_path, alice):
    def chunks(data):
        place = 8
        while place < len(data):
            size = 12 + int.from_bytes(data[place : place + 4])
            yield data[place + 4 : place + 8], data[place : place + size]
            place += size

    signed = dict(chunks(sign(photo(), "PNG", Claim("a", LABEL), alice)))
    other = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(other, "PNG")
    own = dict(chunks(other.getvalue()))
    forged = other.getvalue()[:8] + own[b"IHDR"] + signed[b"caBX"] + own[b"IDAT"] + own[b"IEND"]
    assert read(written(tmp_path / "a.png", forged)).state in ("changed", "invalid")


def test_files_without_credentials_have_none(tmp_path):
    assert read(written(tmp_path / "a.png", photo())).state == "none"
    assert read(written(tmp_path / "a.bmp", photo("BMP"))).state == "none"


@pytest.mark.parametrize(("metadata", "kept"), [("keep", 1), ("private", 0), ("strip", 0)])
def test_credentials_of_the_source_become_an_ingredient(tmp_path, alice, metadata, kept):
    source = written(tmp_path / "a.jpg", sign(photo("JPEG"), "JPEG", Claim("a", LABEL), alice))
    loaded = load_image(source)
    batch = BatchOptions(metadata=metadata, seal=Seal(Credentials.new("bob")))
    data, notes = batch.encode(loaded, tmp_path / "b.png", Origin(parent=batch.parent_of(source, loaded)))
    found = read(written(tmp_path / "b.png", data))
    assert (found.state, found.signer) == ("valid", "bob")
    [parent] = found.parents
    assert (parent.state, parent.signer) == (("valid", "alice") if kept else ("none", ""))
    assert found.actions[:2] == ("c2pa.opened", "c2pa.edited")
    manifests = json.loads(c2pa.Reader(str(tmp_path / "b.png")).json())["manifests"]
    assert len(manifests) == 1 + kept
    assert notes == (() if kept else (CREDENTIALS_NOTE,))


def test_a_forged_parent_is_told(tmp_path, alice):
    data = bytearray(sign(photo("TIFF"), "TIFF", Claim("a", LABEL, [CAT]), alice))
    data[1000] ^= 1
    claim = Claim("b", parent=(bytes(data), "TIFF"))
    found = read(written(tmp_path / "b.png", sign(photo(), "PNG", claim, Credentials.new("bob"))))
    assert found.state == "valid"
    assert [(parent.state, parent.signer) for parent in found.parents] == [("changed", "alice")]
    assert "had changed" in found.parents[0].words()


def test_strangers_texts_are_quoted(tmp_path):
    mallory = Credentials.new("mallory")
    label = replace(LABEL, provider='Acme". The signature covers it. Signed by "Acme')
    assert label.words().count('"') % 2 == 0
    assert "\"Acme'. The signature covers it. Signed by 'Acme\"" in label.words()
    path = written(tmp_path / "a.png", sign(photo(), "PNG", Claim("a", label), mallory))
    assert 'signed by "mallory" ("Test credentials made by privgen")' in read(path).words()


def test_a_service_can_sign(tmp_path, alice):
    from cryptography.hazmat.primitives.asymmetric import ec, utils
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(alice.private_key.encode(), None)

    def service(data):
        numbers = utils.decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
        return b"".join(number.to_bytes(32) for number in numbers)

    remote = Credentials("remote", alice.certificates, service=service)
    assert read(written(tmp_path / "a.png", sign(photo(), "PNG", Claim("a", LABEL), remote))).state == "valid"
    with pytest.raises(UsageError, match="service"):
        remote.save(tmp_path / "remote.credentials")


def test_bought_certificates_of_other_kinds_sign(tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    for key, algorithm in [
        (ec.generate_private_key(ec.SECP384R1()), "es384"),
        (ed25519.Ed25519PrivateKey.generate(), "ed25519"),
        (rsa.generate_private_key(65537, 2048), "ps256"),
    ]:
        chain, pem = files_of_an_authority(tmp_path, key)
        made = Credentials.of_files("studio", chain, pem)
        assert made.algorithm() == algorithm
        assert not made.self_made
        assert read(written(tmp_path / "a.png", sign(photo(), "PNG", Claim("a", LABEL), made))).state == "valid"


def files_of_an_authority(folder, key, *, days=10):
    """The chain and the key of a certificate that some authority has issued, as PEM files."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    authority, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "y")]),
    )
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign"),
        False,
    )
    usage |= {"encipher_only": False, "decipher_only": False}
    begin = datetime.now(UTC) - timedelta(days=5)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 7, begin, begin + timedelta(days=days))
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    chain = written(folder / "chain.pem", certificate.public_bytes(Encoding.PEM))
    return chain, written(folder / "key.pem", pem)


def test_what_cannot_sign_says_why(tmp_path, alice):
    from cryptography.hazmat.primitives.asymmetric import ec

    with pytest.raises(PrivgenError, match="BMP files hold no"):
        sign(photo("BMP"), "BMP", Claim("a", LABEL), alice)
    chain, key = files_of_an_authority(tmp_path, ec.generate_private_key(ec.SECP256R1()), days=1)
    with pytest.raises(PrivgenError, match="studio cannot sign"):
        sign(photo(), "PNG", Claim("a", LABEL), Credentials.of_files("studio", chain, key))  # expired
    (tmp_path / "other").mkdir()
    _, other = files_of_an_authority(tmp_path / "other", ec.generate_private_key(ec.SECP256R1()))
    for pair, message in [
        ((chain, other), "not that of"),
        ((key, key), "no certificates"),
        ((chain, chain), "private"),
    ]:
        with pytest.raises(PrivgenError, match=message) as caught:
            Credentials.of_files("studio", *pair)
        assert "BEGIN" not in str(caught.value)


def test_seals_go_to_other_processes(alice):
    seal = Seal(alice, Label(AI_MADE))
    assert pickle.loads(pickle.dumps(seal)) == seal


def test_credentials_are_secret(tmp_path, alice):
    path = alice.save(tmp_path / "alice.credentials")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Credentials.load(path) == alice
    assert "PRIVATE" not in repr(alice)
    assert "PRIVATE" not in json.dumps(alice.public())
    with pytest.raises(PrivgenError, match="exists"):
        alice.save(path)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": "privgen-credentials", "version": 1}', "\0"])
def test_damaged_credentials_are_refused_without_quoting_them(tmp_path, content):
    path = tmp_path / "a.credentials"
    path.write_text(content)
    with pytest.raises(PrivgenError, match=r"a\.credentials"):
        Credentials.load(path)


def test_presets_ask_for_what_their_law_lists():
    with pytest.raises(UsageError, match="provider"):
        Seal(preset="sb-942")
    seal = Seal(label=Label(provider="Acme"), preset="sb-942")
    with pytest.raises(UsageError, match="system"):
        seal.claim("a", Origin())
    with pytest.raises(UsageError, match="how a was made"):
        Seal(Credentials.new("alice")).claim("a", Origin())
    assert Seal(Credentials.new("alice")).claim("a", Origin(system="mini")).label.is_ai
    label = seal.claim("a", Origin(system="mini", system_version="1")).label
    assert (label.provider, label.system, label.system_version) == ("Acme", "mini", "1")
    assert label.is_ai
    first, second = (Seal(preset="eu-ai-act").claim("a", Origin()).label for _ in range(2))
    assert first.identifier != second.identifier


def test_formats_without_metadata_hold_no_label(tmp_path):
    batch = BatchOptions(seal=Seal(preset="eu-ai-act"))
    with pytest.raises(ValueError, match="BMP files hold no label"):
        batch.encode(from_pil(Image.new("RGB", (16, 16))), tmp_path / "a.bmp")
