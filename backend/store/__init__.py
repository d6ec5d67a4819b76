"""Where every acknowledged message is: what a server reads after an eviction, a restart or another server's death."""
