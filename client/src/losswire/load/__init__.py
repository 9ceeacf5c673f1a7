"""Load for a losswire server, and what it says about it: `losswire bench` without its command line.

`schedule` says when calls begin, `workload` what they carry, `run` makes them, `samples` sums up how long they took,
and `search` finds the highest rate within a latency goal.
"""
