"""Certificates for tests, made by `trustme`."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.proxy_process import Table


class Authority:
    """A CA whose certificates are files in one directory."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._ca = trustme.CA()
        self._directory = directory
        self.file = directory / f"{name}.pem"
        self.pem = self._ca.cert_pem.bytes()
        self.file.write_bytes(self.pem)

    def issue(self, *names: str, file: str = "server", **options: Any) -> Certificate:
        """A certificate for these names, and its key, in the files `<file>.crt` and `<file>.key`."""
        issued = Certificate(self._directory / f"{file}.crt", self._directory / f"{file}.key", self)
        if any("://" in name for name in names):
            issued.key.write_bytes(_pem(key := ec.generate_private_key(ec.SECP256R1())))
            issued.certificate.write_bytes(self._with_uris(names, key.public_key()))
        else:
            issued.write(self._ca.issue_cert(*names, **options))
        return issued

    def again(self, certificate: Certificate, *names: str, **options: Any) -> None:
        """Another certificate in the same files."""
        certificate.write(self._ca.issue_cert(*names, **options))

    def _with_uris(self, names: tuple[str, ...], key: ec.EllipticCurvePublicKey) -> bytes:
        """What trustme has no words for: a certificate with URIs among its names."""
        authority = x509.load_pem_x509_certificate(self.pem)
        now = datetime.now(UTC)
        alternatives = [x509.UniformResourceIdentifier(each) if "://" in each else x509.DNSName(each) for each in names]
        builder = (
            x509.CertificateBuilder(authority.subject, x509.Name([]), key, x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        )
        signer = load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Certificate:
    """A certificate and its key, as files."""

    def __init__(self, certificate: Path, key: Path, authority: Authority) -> None:
        self.certificate = certificate
        self.key = key
        self.authority = authority

    def write(self, issued: trustme.LeafCert) -> None:
        """Put it into the files."""
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    @property
    def table(self) -> Table:
        """As the settings `certificate` and `key`."""
        return {"certificate": str(self.certificate), "key": str(self.key)}

    def server_credentials(self, client_ca: Authority | None = None) -> grpc.ServerCredentials:
        """For a grpcio server. `client_ca`: clients need a certificate of it."""
        pair = (self.key.read_bytes(), self.certificate.read_bytes())
        return grpc.ssl_server_credentials([pair], client_ca and client_ca.pem, client_ca is not None)

    def client_credentials(self, server_ca: Authority | None = None) -> grpc.ChannelCredentials:
        """For a grpcio client. `server_ca`: servers have a certificate of it; None: of the same."""
        ca = (server_ca or self.authority).pem
        return grpc.ssl_channel_credentials(ca, self.key.read_bytes(), self.certificate.read_bytes())

    def client_context(self, *alpn: str) -> ssl.SSLContext:
        """For a client of Python's ssl, which offers these protocols."""
        context = ssl.create_default_context(cafile=str(self.authority.file))
        context.load_cert_chain(self.certificate, self.key)
        if alpn:
            context.set_alpn_protocols(alpn)
        return context
