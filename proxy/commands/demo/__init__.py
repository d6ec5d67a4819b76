"""`districhat demo`: the simulation, with real processes and a client that knows nothing but the proxy's address.

scenario    what is played: servers, chats, when one dies, the proxy's configuration (pure)
ledger      what must hold for every answer, and the verdict (pure)
processes   the children: started, waited for, ended by their own ids whatever happens
client      a plain grpcio client
report      the phases as text
simulation  plays the scenario        stay  keeps the same processes up for other clients
"""
