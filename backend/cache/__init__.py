"""The session cache: two levels in memory, each least-recently-used, over a store."""
