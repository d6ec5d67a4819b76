"""DistriChat itself, as `districhat serve` runs it."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.errors import UsageError
from bench.peers.base import Peer
from bench.process import ROOT

if TYPE_CHECKING:
    from bench.peers.base import Setup


def _command(setup: Setup) -> list[str]:
    config = setup.directory / "proxy.toml"
    config.write_text(configuration(setup), encoding="utf-8")
    return [sys.executable, "-m", "proxy", "serve", "--config", str(config)]


def _command_without_metrics(setup: Setup) -> list[str]:
    command = _command(setup)
    with (setup.directory / "proxy.toml").open("a", encoding="utf-8") as config:
        config.write("\n[metrics]\nenabled = false\n\n[decisions]\nkept = 0\n")
    return command


def _compiled_command(setup: Setup) -> list[str]:
    site = ROOT / "build" / "compiled" / "site"
    if not site.is_dir():
        raise UsageError("there is no compiled build: run `make compiled` first")
    python, *rest = _command(setup)
    return ["env", f"PYTHONPATH={site}", python, "-P", *rest]  # -P: not the plain files of this directory


def configuration(setup: Setup) -> str:
    """Defaults, plus a route for the benchmark's method that does what the built-in one of PostMessage does.

    With `Resilience` the method has no limit of time, and its repeatable sister says so. Health checks, outlier
    detection and retries are the defaults.
    """
    endpoints = "".join(
        f'\n[[endpoints]]\nid = "bench-{number}"\naddress = "{address}"\n'
        for number, address in enumerate(setup.backends, 1)
    )
    route = f'\n[[routes]]\nmethod = "{setup.method}"\nkey = {{ field = "1" }}\n'
    if wanted := setup.resilience:
        repeatable = f'method = "{wanted.repeatable}"\nkey = {{ field = "1" }}\nidempotency_key = true\n'
        route = f"\n[[routes]]\n{repeatable}per_try_timeout = {wanted.per_try_timeout}\n{route}"
    else:
        route += "timeout = 10.0\n"
    listener = f'[listener]\naddress = "127.0.0.1:{setup.port}"\n'
    if setup.tls:
        listener += f'\n[listener.tls]\ncertificate = "{setup.tls.certificate}"\nkey = "{setup.tls.key}"\n'
    return f'{listener}\n[admin]\naddress = "127.0.0.1:0"\n{endpoints}{route}'


PEER = Peer(
    name="districhat",
    about="this project: `districhat serve`, default settings, chat id read from the message",
    command=_command,
    calls=40_000,
    ready=" ready on ",
    packages=("districhat", "ngh2", "uvloop"),
    settings="defaults; `idempotency_key = true` and `per_try_timeout` on the repeatable method",
)

WITHOUT_METRICS = replace(
    PEER,
    name="unmetered",
    about="this project with [metrics] enabled = false and no recent decisions, to see what those cost",
    command=_command_without_metrics,
    on_request=True,
)

COMPILED = replace(
    PEER,
    name="compiled",
    about="this project's compiled build (`make compiled`), otherwise the same",
    command=_compiled_command,
)
