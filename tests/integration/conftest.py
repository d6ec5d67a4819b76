"""Certificates for tests that need no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.tls import Authority

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.tls import Certificate


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def certificate(ca: Authority) -> Certificate:
    """The proxy's own, and the servers'."""
    return ca.issue("127.0.0.1", "localhost", "proxy.test")


@pytest.fixture
def visitor(ca: Authority) -> Certificate:
    """A client's."""
    return ca.issue("visitor.test", file="visitor")
