"""Several server processes on one port: `--processes N`.

A supervisor without PyTorch holds the port, answers probes, questions and scrapes, and keeps N workers alive, each a
server of its own with its own event loop and engine. The kernel spreads connections over them (SO_REUSEPORT).

    supervisor.py    the life of the whole: start, restarts, drain
    child.py         one worker as the supervisor sees it
    worker.py        what runs inside a worker
    link.py          what both say to one another
    merging.py       the metrics of all as those of one
    reservation.py   the port, held before anyone listens
    shares.py        how many processes, and what each gets
"""
