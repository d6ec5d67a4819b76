"""All cores: worker processes carry the calls, one parent decides.

    parent (`supervisor`, `knowledge`)        worker (`worker`), N of them
    control plane: health checks, outlier     data plane: listener, calls, pools
    detection, admin, reload
                 -- settings, what is said against servers, quarantines -->
                 <-- loads, how calls ended, which chats moved ------------

Each worker listens on a socket of its own on the same port (SO_REUSEPORT); the kernel spreads the clients over them.
The parent made those sockets and keeps them, so that what waits in a crashed worker's queue waits for its replacement.

What is decided in one place is exact, a few milliseconds late: ejections, quarantines, drains, health. What every call
asks for is local, and approximate by what has happened elsewhere in the last `EXCHANGE` seconds: the load of a server,
and the shares of the limits (see `proxy.workers.shares`). Limits of one connection, chat, address or buffer hold in
each worker.
"""
