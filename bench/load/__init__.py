"""Putting load on a proxy: h2load where it can make the calls of a scenario, `bench.load.calls` where it cannot."""
