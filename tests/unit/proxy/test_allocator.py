from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from proxy import allocator

CHURN = """
import resource
from proxy.allocator import keep_freed_memory
{first}
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    bytes(bytearray(4 << 20))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 50 * (4 << 20) // 4096


def faults(first: str) -> int:
    run = subprocess.run([sys.executable, "-c", CHURN.format(first=first)], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_memory_that_was_freed_is_used_again_without_asking_the_kernel() -> None:
    assert faults("") > PAGES / 2
    assert faults("assert keep_freed_memory()") < PAGES / 5


def test_without_mallopt_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert allocator.keep_freed_memory() is False
