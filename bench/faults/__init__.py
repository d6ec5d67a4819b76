"""`python -m bench.faults`: what clients notice when servers fail behind DistriChat, Envoy, HAProxy and nginx.

cli         command line, peers that cannot be had are skipped
run         one peer through one scenario: processes up, load, fault, tail, numbers
scenarios   the faults: rolling restart, SIGKILL, SIGSTOP
servers     the three servers, each a process (backend) that can be signalled and started again
load        grpcio clients: unary calls at a fixed rate, and streams
ledger      what the servers wrote down: who ran which call, when (pure)
analysis    calls + ledger + faults -> one row of numbers (pure)
report      tables, docs/failures.md, bench/results/faults.json
"""
