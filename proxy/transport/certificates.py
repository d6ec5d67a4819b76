"""Reads certificates and keys, and says what is wrong with them before a handshake does.

OpenSSL refuses bad files as well, but in words like `[SSL: NO_START_LINE]`, and it takes an expired certificate without
one; so each file is looked at first. `cryptography` is loaded with this module: import it only where there is TLS.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from proxy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


class Identity(NamedTuple):
    """What one side shows to the other."""

    chain: bytes
    """Certificates in PEM form, the own one first."""
    key: bytes
    """In PEM form."""
    expires: datetime
    """When the first certificate of the chain to expire does."""


def read_identity(section: str, certificate: Path, key: Path) -> Identity:
    """The certificate and key in these files, whose settings are `section`.certificate and `section`.key.

    Raises ConfigError: a file cannot be read or understood, a certificate is not valid today, or the key is another's.
    """
    chain, key_pem = read_file(f"{section}.certificate", certificate), read_file(f"{section}.key", key)
    certificates = _certificates(f"{section}.certificate", certificate, chain)
    _is_valid_today(f"{section}.certificate", certificate, certificates)
    try:
        private_key = load_pem_private_key(key_pem, password=None)
    except TypeError as error:
        raise _problem(f"{section}.key", key, "needs a passphrase; give it a key without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _problem(f"{section}.key", key, "holds no private key in PEM form") from error
    if private_key.public_key() != certificates[0].public_key():
        raise _problem(f"{section}.key", key, f"does not belong to the first certificate in {certificate}")
    return Identity(chain, key_pem, min(each.not_valid_after_utc for each in certificates))


def read_authorities(key: str, file: Path) -> bytes:
    """The certificates of CAs in `file`, whose setting is `key`, in PEM form.

    Raises ConfigError: the file cannot be read, holds no certificate, or none that is valid today.
    """
    pem = read_file(key, file)
    certificates = _certificates(key, file, pem)
    problems = []
    for certificate in certificates:  # a bundle may hold some that are over
        try:
            _is_valid_today(key, file, [certificate])
        except ConfigError as error:
            problems += error.problems
    if len(problems) == len(certificates):
        raise ConfigError(problems[:1])
    return pem


def read_file(key: str, file: Path) -> bytes:
    """What `file` holds. Raises ConfigError about the setting `key`."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise _problem(key, file, f"cannot be read: {os.strerror(error.errno or 0).lower()}") from error
    except ValueError as error:  # the name holds a NUL
        raise _problem(key, file, f"cannot be read: {error}") from error


def _certificates(key: str, file: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise _problem(key, file, "holds no certificate in PEM form, or one that is broken") from error


def _is_valid_today(key: str, file: Path, certificates: list[x509.Certificate]) -> None:
    now = datetime.now(UTC)
    for certificate in certificates:
        name = certificate.subject.rfc4514_string() or "without a name"
        if certificate.not_valid_after_utc < now:
            raise _problem(key, file, f"the certificate {name} expired on {_day(certificate.not_valid_after_utc)}")
        if certificate.not_valid_before_utc > now:
            begins = _day(certificate.not_valid_before_utc)
            raise _problem(key, file, f"the certificate {name} is not valid before {begins}")


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _problem(key: str, file: Path, text: str) -> ConfigError:
    return ConfigError([f"{key}: {file}: {text}"])
