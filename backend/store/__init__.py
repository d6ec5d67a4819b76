"""Where sessions go that no longer fit in memory."""
