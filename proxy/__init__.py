"""DistriChat, the proxy: sticky routing of gRPC calls by a field inside the message."""
