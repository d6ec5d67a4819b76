"""Micro benchmarks with pyperf: the ring, and a call in memory. `python -m bench.micro`."""
