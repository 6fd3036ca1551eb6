"""TLS between the servers of a deployment: both ends show a certificate of the deployment's own authority.

What a certificate is for stands in its name, not where it is: a worker may be at any address.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import grpc

from tandem.deployment import Tls
from tandem.errors import TandemError

WORKER_NAME = "worker.tandem"
"""In the certificate of each server with workers."""


def channel_credentials(tls: Tls) -> Any:
    """A gRPC client's credentials.

    Raises:
        TandemError: ``invalid_request``: a file cannot be read.
    """
    return grpc.ssl_channel_credentials(
        root_certificates=_read("ca", tls.ca),
        private_key=_read("key", tls.key),
        certificate_chain=_read("certificate", tls.certificate),
    )


def server_context(tls: Tls) -> ssl.SSLContext:
    """For a server that talks to nobody without a certificate.

    Raises:
        TandemError: ``invalid_request``: a file cannot be read, or does not hold what it should.
    """
    for field in ("ca", "certificate", "key"):
        _read(field, getattr(tls, field))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(tls.ca)
        context.load_cert_chain(tls.certificate, tls.key)
    except (ssl.SSLError, OSError) as error:
        raise TandemError("invalid_request", f"tls: {tls.certificate}, {tls.key}, {tls.ca}: {error}") from error
    return context


def _read(field: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise TandemError("invalid_request", f"tls.{field}: {path!r} cannot be read: {error.strerror}") from error
