"""The commands that ask and steer a running proxy by its admin API, such as `status` and `drain`.

`where` finds the API, `client` speaks with it, the other modules are a command or two each. They read no endpoints of a
configuration: what they tell is what the proxy says.
"""
