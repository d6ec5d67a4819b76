"""Why a benchmark could not be carried out. Failed calls are a result, not an error: see `bench.load.LoadResult`."""

from __future__ import annotations


class BenchError(Exception):
    """Ends the benchmark; the text is one message for the person who started it."""

    exit_code = 1


class UsageError(BenchError):
    """The command line, or the machine it was typed on, does not allow this benchmark."""

    exit_code = 2
