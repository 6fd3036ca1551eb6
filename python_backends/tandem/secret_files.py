"""The secrets of a deployment as files: a private authority, certificates, the handle key, ssh keys for ranks.

    DIRECTORY/ca/        the authority's key: whoever has it can make further certificates; no server needs it
    DIRECTORY/gateway/   ca.pem, certificate.pem, key.pem, handle_key
    DIRECTORY/worker/    the same, and ssh/: what mpiexec needs to start ranks in other containers, and sshd there
    DIRECTORY/watch/     ca.pem, certificate.pem, key.pem: for who reads the metrics

A host needs the directories of what runs on it.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tandem.errors import TandemError
from tandem.keys import KEY_BYTES, MAX_KEYS

ROLES = ("gateway", "worker", "watch")
RANK_ALIAS = "rank.tandem"
"""The name under which ssh knows every container with ranks, wherever it is."""

_DAYS = {"ca": 3650, "certificate": 825}
_HOUR = datetime.timedelta(hours=1)


def make_secrets(directory: Path, *, owner: int | None = None, watch_owner: int | None = None) -> bool:
    """Make everything, readable by its owner alone; ``watch_owner`` is that of watch/ where it is another one. False,
    and nothing is done, where ``directory`` has secrets.

    Raises:
        TandemError: ``environment``: it cannot be written.
    """
    try:
        if any(directory.glob("*/*")):
            return False
        handle_key = secrets.token_hex(KEY_BYTES) + "\n"
        authority = _Authority()
        _write(directory / "ca", {"ca.pem": authority.pem, "key.pem": _key_pem(authority.key)}, owner)
        for role in ROLES:
            files = authority.issue(f"{role}.tandem")
            if role != "watch":
                files["handle_key"] = handle_key.encode()
            _write(directory / role, files, watch_owner if role == "watch" and watch_owner is not None else owner)
        _write(directory / "worker" / "ssh", _ssh_files(), owner)
    except OSError as error:
        raise TandemError("environment", f"{directory} cannot be written: {error}") from error
    return True


def rotate_handle_key(directory: Path, *, owner: int | None = None) -> list[Path]:
    """Put a new handle key before the one that is there, which is accepted for as long as it stands there. Servers read
    it by themselves, and sign with it a minute later. Returns the files.

    Raises:
        TandemError: ``environment``: there is no key yet, or the files cannot be written.
    """
    # Workers first: what a gateway signs must be verified there.
    files = [file for role in ("worker", "gateway") if (file := directory / role / "handle_key").exists()]
    if not files:
        raise TandemError("environment", f"{directory} holds no handle_key in worker/ or gateway/; make secrets first")
    try:
        known = [secrets.token_hex(KEY_BYTES), *files[0].read_text().split()][:MAX_KEYS]
        for file in files:
            _write(file.parent, {file.name: ("\n".join(known) + "\n").encode()}, owner)
    except OSError as error:
        raise TandemError("environment", f"{directory}: the handle key cannot be changed: {error}") from error
    return files


def _write(directory: Path, files: dict[str, bytes], owner: int | None) -> None:
    """Each file whole or not at all, for others read them."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, data in files.items():
        draft = directory / f".{name}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        if owner is not None:
            os.chown(draft, owner, owner)
        draft.replace(directory / name)
    if owner is not None:
        os.chown(directory, owner, owner)


# ---------------------------------------------------------------- certificates


class _Authority:
    """A private authority of ten years, and what it signs."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tandem deployment")])
        identifier = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        builder = _builder(self._name, self._name, self.key, _DAYS["ca"])
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        builder = builder.add_extension(identifier, critical=False)
        self._identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        self.pem = builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str) -> dict[str, bytes]:
        """File name → content: a certificate for both ends of a connection, its key, and this authority's own."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names: Iterable[x509.GeneralName] = (
            x509.DNSName(name),
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        )
        ends = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = _builder(subject, self._name, key, _DAYS["certificate"])
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(ends), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(self._identifier, critical=False)
        certificate = builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        return {"ca.pem": self.pem, "certificate.pem": certificate, "key.pem": _key_pem(key)}


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _HOUR)  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


# ---------------------------------------------------------------- ssh


def _ssh_files() -> dict[str, bytes]:
    """A key that may enter, a key that says who is entered, and the files that tell each end of the other's."""
    entering, host = _ssh_key(), _ssh_key()
    return {
        "key": entering[0],
        "authorized_keys": entering[1] + b" tandem\n",
        "host_key": host[0],
        "known_hosts": RANK_ALIAS.encode() + b" " + host[1] + b"\n",
    }


def _ssh_key() -> tuple[bytes, bytes]:
    """Private and public part, as OpenSSH has them."""
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    return private, key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
