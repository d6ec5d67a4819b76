from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from proxy.control.settings import HealthSettings
from proxy.errors import ConfigError
from proxy.settings import load_settings


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"kind": "http"}, "kind"),
        ({"interval": 0.0}, "interval"),
        ({"interval": float("inf")}, "interval"),
        ({"unhealthy_interval": 0.001}, "unhealthy_interval"),
        ({"interval_jitter_percent": 51}, "interval_jitter_percent"),
        ({"timeout": 0}, "timeout"),
        ({"unhealthy_threshold": 0}, "unhealthy_threshold"),
        ({"healthy_threshold": 0}, "healthy_threshold"),
        ({"startup_timeout": -1}, "startup_timeout"),
        ({"max_concurrent_checks": 0}, "max_concurrent_checks"),
        ({"path": "/healthz"}, "path"),
        ({"interval": 0.5}, "unhealthy_interval must be at most interval"),
    ],
)
def test_an_impossible_setting_is_refused(values: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        HealthSettings(**values)


def test_a_check_address_is_checked_like_an_address() -> None:
    endpoints = '[{"id": "a", "address": "h:1", "check_address": "h:0"}]'
    with pytest.raises(ConfigError, match=r"endpoints\[0\]\.check_address: .*port"):
        load_settings(None, {"DISTRICHAT_ENDPOINTS": endpoints})
