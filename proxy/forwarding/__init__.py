"""The pure life of one call: route, key, headers, retries, the call itself."""
