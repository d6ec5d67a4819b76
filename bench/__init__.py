"""`python -m bench`: CPU time of a proxy per call, ours and others' in one run. `bench/README.md` explains it."""
