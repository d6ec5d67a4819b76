"""`python -m tests.fuzz TARGET [FLAGS OF LIBFUZZER ...]`; `make fuzz` runs all targets.

Inputs found on the way are kept in build/fuzz/TARGET and are begun from the next time. One that fails is written there
too, its name printed: give it as an argument to run it alone. Make a named test of it before the fix.
"""

from __future__ import annotations

import logging
import sys

import atheris

with atheris.instrument_imports(include=["proxy"]):
    from tests.fuzz.targets import TARGETS

from tests.conformance.table import ROOT
from tests.fuzz.seeds import LONGEST, mutate, unpack


def main() -> None:
    """Fuzz one target, as long as the flags say."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz {{{','.join(TARGETS)}}} [-max_total_time=SECONDS ...]\n\n{__doc__}")
    target, arguments = sys.argv[1], sys.argv[2:]
    logging.getLogger("proxy").addHandler(logging.NullHandler())
    logging.getLogger("proxy").propagate = False  # what peers do wrong is told at length otherwise
    folder = ROOT / "build" / "fuzz" / target
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    flags = [f"-artifact_prefix={folder}/", "-timeout=30", f"-max_len={LONGEST}", "-print_final_stats=1"]
    if not any(argument[:1] != "-" for argument in arguments):
        unpack(target, folder / "seeds")
        arguments += [str(corpus), str(folder / "seeds")]
    options = {}
    if target != "key_extraction":
        options["custom_mutator"] = lambda data, size, seed: mutate(data, size, seed, atheris.Mutate)
    atheris.Setup([sys.argv[0], *flags, *arguments], TARGETS[target], **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
