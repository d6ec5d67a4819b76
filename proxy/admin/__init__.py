"""What an operator sees and steers: HTTP API, metrics, explanations. Beside the data path, never on it.

`schema` is the contract with clients, `ports` what is needed of the proxy; `api` joins the two, `server` makes it a
web server. Handlers run on the data path's event loop, so none may hold it for more than about a millisecond: what is
large is built in slices (`slices`).
"""
