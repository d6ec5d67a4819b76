"""What the commands of `districhat` do, a module each. The command-line layer: nothing imports it but `proxy.cli`."""
