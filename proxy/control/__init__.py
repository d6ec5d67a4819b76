"""Background services beside the data path: ordinary async code that watches the servers."""
