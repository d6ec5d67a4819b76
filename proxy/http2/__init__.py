"""HTTP/2 without I/O. The only package that knows the engine (ngh2, which is libnghttp2)."""
