"""Time stamps: an authority that OpenSSL plays is asked for each signature."""

import io
import shutil
import subprocess
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from PIL import Image

from privgen import Credentials, Label, PrivgenError
from privgen.provenance.claim import Claim
from privgen.provenance.content_credentials import read, sign
from privgen.provenance.label import AI_MADE


pytest.importorskip("c2pa", reason="needs the extra c2pa")

CONFIG = """
[tsa]
default_tsa = t
[t]
serial = serial
crypto_device = builtin
signer_cert = tsa.pem
certs = ca.pem
signer_key = tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256,sha384,sha512
ess_cert_id_alg = sha256
"""
EXTENSIONS = """
keyUsage=critical,digitalSignature
extendedKeyUsage=critical,timeStamping
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
"""


@pytest.fixture
def authority(tmp_path):
    """The address of a time-stamping authority, and its root in PEM."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True)

    for name, text in {"config": CONFIG, "extensions": EXTENSIONS, "serial": "01"}.items():
        (tmp_path / name).write_text(text)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca/O=x")
    openssl("req", *key, "-keyout", "tsa.key", "-out", "tsa.csr", "-subj", "/CN=tsa/O=x")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "extensions")
    openssl("x509", "-req", "-in", "tsa.csr", *signed, "-out", "tsa.pem")

    class Authority(BaseHTTPRequestHandler):
        def do_POST(self):
            (tmp_path / "query").write_bytes(self.rfile.read(int(self.headers["content-length"])))
            openssl("ts", "-reply", "-config", "config", "-queryfile", "query", "-out", "reply")
            self.send_response(200)
            self.send_header("content-type", "application/timestamp-reply")
            self.end_headers()
            self.wfile.write((tmp_path / "reply").read_bytes())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Authority) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", (tmp_path / "ca.pem").read_text()
        server.shutdown()


def test_signatures_carry_the_time(tmp_path, authority):
    address, root = authority
    photo = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(photo, "PNG")
    claim, alice = Claim("a", Label(AI_MADE)), replace(Credentials.new("alice"), time_stamps=address)
    (tmp_path / "a.png").write_bytes(sign(photo.getvalue(), "PNG", claim, alice))
    found = read(tmp_path / "a.png")
    assert found.state == "valid"
    assert found.signed_at
    assert not found.time_trusted
    assert read(tmp_path / "a.png", anchors=root).time_trusted
    with pytest.raises(PrivgenError, match="alice cannot sign"):
        sign(photo.getvalue(), "PNG", claim, replace(alice, time_stamps="http://127.0.0.1:1/"))
