"""Credentials: the certificate and the private key that sign what files say about images.

A certificate that you make yourself shows that one signer signed all your images, and that they have not changed
since. It does not show who you are: anybody can make one with your name in it.

Source: C2PA specification 2.2 (2025), section "Trust model", certificate profile; RFC 5280.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privgen.errors import PrivgenError, UsageError
from privgen.io.files import read_small
from privgen.io.own_files import OwnFile, check_name, own_path, user_folder


if TYPE_CHECKING:
    from cryptography.x509 import Certificate

SUFFIX = ".credentials"
_FILE = OwnFile("credentials file", SUFFIX, "privgen-credentials", 1, "`privgen credentials new`")
_VARIABLE, _FOLDER = "PRIVGEN_CREDENTIALS", "credentials"

INSTALL = "pip install 'privgen[c2pa]' to sign and to read Content Credentials."

_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_YEARS = 10  # that the root of a test chain is valid


@dataclass(frozen=True)
class Credentials:
    """A certificate chain, and what signs for it.

    Example:
        >>> from privgen import Credentials
        >>> alice = Credentials.new("alice")
        >>> alice.self_made
        True

    Attributes:
        name: a label of yours, of the characters that a key's name may have.
        certificates: the chain in PEM, first that of the signer, without a root that others know.
        private_key: of the signer, in PEM (PKCS 8), unencrypted. None if a service signs.
        service: signs bytes: the raw signature of them, for elliptic curves r and s (IEEE P1363). It is called instead
            of the private key, and is not saved.
        time_stamps: address of a time-stamping authority (RFC 3161), which is asked for each signature; None for none.
        self_made: whether `new` made it, so that nobody vouches for it.
    """

    name: str
    certificates: str = field(repr=False)
    private_key: str | None = field(default=None, repr=False)
    service: Callable[[bytes], bytes] | None = field(default=None, repr=False)
    time_stamps: str | None = None
    self_made: bool = False

    def __post_init__(self) -> None:
        check_name(self.name, "credentials")
        if (self.private_key is None) == (self.service is None):
            raise UsageError("Credentials sign with a private key or with a service; give one of them.")
        if self.time_stamps is not None and not self.time_stamps.startswith(("http://", "https://")):
            raise UsageError(
                f"{self.time_stamps} is no address of a time-stamping authority; it begins with https://."
            )

    @classmethod
    def new(cls, name: str, *, days: int = 365) -> "Credentials":
        """Make a test chain: a root of your own, and a certificate that it signs. Viewers call it untrusted.

        Args:
            name: your name for it, which is also the name in the certificate.
            days: for which the signer's certificate is valid.

        Raises:
            UsageError: the name is not allowed.
            PrivgenError: the packages of the extra c2pa are missing.
        """
        check_name(name, "credentials")
        certificates, key = _test_chain(name, days)
        return cls(name, certificates, key, self_made=True)

    @classmethod
    def of_files(
        cls,
        name: str,
        certificates: str | os.PathLike[str],
        private_key: str | os.PathLike[str],
        *,
        time_stamps: str | None = None,
    ) -> "Credentials":
        """Take over a certificate that an authority has issued.

        Args:
            name: a label of yours.
            certificates: PEM file of the chain, first that of the signer.
            private_key: PEM file of the signer's key, unencrypted.
            time_stamps: see the class.

        Raises:
            PrivgenError: a file cannot be read, is not what it should be, or the two do not belong together.
        """
        chain, key = _text(Path(certificates)), _text(Path(private_key))
        made = cls(name, chain, key, time_stamps=time_stamps)
        signer = _chain(chain, str(certificates))[0].public_key()
        if _private(key, str(private_key)).public_key() != signer:
            raise PrivgenError(f"The key {private_key} is not that of the first certificate in {certificates}.")
        made.algorithm()  # raises for keys that C2PA does not know
        return made

    def algorithm(self) -> str:
        """The signing algorithm that the certificate is for, by its name in C2PA: "es256", "ps256", "ed25519", ...

        Raises:
            PrivgenError: C2PA does not know it.
        """
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

        key = _chain(self.certificates, f"the certificate of {self.name}")[0].public_key()
        if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
            return _CURVES[key.curve.name]
        if isinstance(key, ed25519.Ed25519PublicKey):
            return "ed25519"
        if isinstance(key, rsa.RSAPublicKey):
            return "ps256"
        raise PrivgenError(
            f"The certificate of {self.name} has a key that C2PA does not know; use P-256, Ed25519 or RSA."
        )

    def root(self) -> str:
        """The root of the chain, in PEM: what others may trust to call your signatures trusted.

        Raises:
            PrivgenError: the chain does not hold its root.
        """
        from cryptography.hazmat.primitives.serialization import Encoding

        last = _chain(self.certificates, self.name)[-1]
        if last.issuer != last.subject:
            raise PrivgenError(
                f"The chain of {self.name} ends before its root, which is what others trust; ask your authority."
            )
        return last.public_bytes(Encoding.PEM).decode()

    def public(self) -> dict[str, Any]:
        """Everything that everybody may know: name, subject and issuer, validity, fingerprint, and who vouches."""
        from cryptography.hazmat.primitives.hashes import SHA256

        signer = _chain(self.certificates, self.name)[0]
        return {
            "name": self.name,
            "subject": signer.subject.rfc4514_string(),
            "issuer": signer.issuer.rfc4514_string(),
            "valid_until": signer.not_valid_after_utc.date().isoformat(),
            "fingerprint": signer.fingerprint(SHA256()).hex(),
            "algorithm": self.algorithm(),
            "time_stamps": self.time_stamps,
            "self_made": self.self_made,
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the credentials to a new file that only you can read.

        Args:
            path: a new file; existing ones are not overwritten.

        Raises:
            UsageError: a service signs, which cannot be saved.
            PrivgenError: the path exists or cannot be written.
        """
        if self.private_key is None:
            raise UsageError("Credentials of a service cannot be saved; make them anew in your program.")
        names = ("name", "certificates", "private_key", "time_stamps", "self_made")
        _FILE.write(Path(path), {name: getattr(self, name) for name in names})
        return Path(path)

    @classmethod
    def load(cls, file_or_name: str | os.PathLike[str]) -> "Credentials":
        """Read a file that `save` wrote, or credentials by their name from `credentials_folder()`.

        Raises:
            PrivgenError: there are none of that path or name, they are damaged, or the extra c2pa is missing.
        """
        needs_c2pa()
        path = Path(file_or_name)
        named = credentials_folder() / f"{path}{SUFFIX}"
        if not path.exists() and path.name == str(file_or_name):
            path = named
        if not path.exists():
            raise PrivgenError(f"There are no credentials {file_or_name}; `privgen credentials new` makes some.")
        document = _FILE.read(path)
        try:
            names = ("name", "certificates", "private_key", "time_stamps", "self_made")
            made = cls(**{name: document[name] for name in names})
            made.public()
        except (KeyError, TypeError, ValueError, AttributeError, PrivgenError):
            raise PrivgenError(f"The credentials {path} are damaged; restore them from a copy.") from None
        _FILE.warn_if_open(path)
        return made


def credentials_folder() -> Path:
    """Return the folder of credentials: $PRIVGEN_CREDENTIALS, or privgen/credentials in $XDG_CONFIG_HOME."""
    return user_folder(_VARIABLE, _FOLDER)


def default_path(name: str) -> Path:
    """Return the path of credentials in their folder, which is made, for its owner only, if it is missing.

    Args:
        name: of the credentials.

    Raises:
        PrivgenError: the folder cannot be made.
    """
    check_name(name, "credentials")
    return own_path(name, _VARIABLE, _FOLDER, SUFFIX)


def needs_c2pa() -> None:
    """Check that the packages of the extra c2pa are there.

    Raises:
        PrivgenError: one is missing.
    """
    try:
        import c2pa
        import cryptography
    except ImportError as error:
        raise PrivgenError(f"{error.name or 'c2pa'} is missing: {INSTALL}") from error
    del c2pa, cryptography


def _test_chain(name: str, days: int) -> tuple[str, str]:
    """A chain of two certificates and the private key of the first, both in PEM."""
    needs_c2pa()
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    root_key, signer_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def certificate(subject: str, issuer: str, days: int, *, is_root: bool) -> "Certificate":
        own, begin = root_key if is_root else signer_key, datetime.now(UTC) - timedelta(minutes=5)
        names = [
            x509.Name(
                [
                    x509.NameAttribute(NameOID.COMMON_NAME, common),
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test credentials made by privgen"),
                ]
            )
            for common in (subject, issuer)
        ]
        usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
        usage |= dict.fromkeys(("encipher_only", "decipher_only"), False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[0])
            .issuer_name(names[1])
            .public_key(own.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=0 if is_root else None), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=not is_root, key_cert_sign=is_root, crl_sign=is_root, **usage),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        )
        if not is_root:
            issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(issued_by, critical=False).add_extension(purpose, critical=False)
        return builder.sign(root_key, hashes.SHA256())

    root = f"{name} (root)"
    chain = [
        certificate(name, root, days, is_root=False),
        certificate(root, root, max(days, 365 * _YEARS), is_root=True),
    ]
    pem = signer_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return "".join(item.public_bytes(Encoding.PEM).decode() for item in chain), pem.decode()


def _chain(pem: str, name: str) -> "list[Certificate]":
    needs_c2pa()
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError as error:
        raise PrivgenError(f"{name} holds no certificates in PEM; ask your authority for the chain.") from error


def _private(pem: str, name: str) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError):
        # From None: the cause could quote the key.
        raise PrivgenError(f"{name} holds no private key in unencrypted PEM (PKCS 8).") from None


def _text(path: Path) -> str:
    try:
        return read_small(path).decode("ascii")
    except (OSError, ValueError) as error:
        raise PrivgenError(f"{path} cannot be read as a PEM file; check the path.") from error
