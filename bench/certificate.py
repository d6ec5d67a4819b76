"""A certificate for 127.0.0.1 that lives as long as a benchmark."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.peers.programs import installed

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """PEM files: the certificate, its key, and both in one, as HAProxy wants it."""

    certificate: Path
    key: Path
    both: Path

    @classmethod
    def make(cls, directory: Path) -> Certificate:
        """Self-signed, ECDSA on P-256, written into `directory`. UsageError without the `openssl` program."""
        made = cls(directory / "certificate.pem", directory / "key.pem", directory / "both.pem")
        command = [
            *(installed("openssl", "openssl"), "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(made.key), "-out", str(made.certificate)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise BenchError(f"openssl made no certificate: {done.stderr.strip()[-300:]}")
        made.both.write_bytes(made.certificate.read_bytes() + made.key.read_bytes())
        return made
