"""Reads the metrics of servers and makes rates of them, for those without Prometheus: `losswire top`.

scrape.py    the metrics of one server at one moment
view.py      what changed between two moments, of one server or of several together
"""
