"""The asyncio part of the data path: listener, downstream and upstream connections, pools."""
