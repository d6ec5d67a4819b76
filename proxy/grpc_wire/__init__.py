"""gRPC over HTTP/2: status, message framing, timeouts, and single protobuf fields by path."""
