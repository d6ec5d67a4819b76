"""The proxies that are measured: a module each, listed in `bench.peers.table`."""
