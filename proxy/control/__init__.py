"""Background services beside the data path: ordinary async code that watches the servers."""

import os

# Before anything imports grpcio, which reads it only then. C-core remarks on every GOAWAY; our log has the flips.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
