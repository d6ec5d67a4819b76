"""Pure state of the servers behind the proxy: endpoints and the snapshot that calls look up in."""
