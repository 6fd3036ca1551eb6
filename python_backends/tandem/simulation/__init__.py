"""The simulated clock: many simulated workers, the router that serves for real, and a day of traffic in minutes.

trace.py      requests and when they arrive
fleet.py      simulated workers, wired to each other
cluster.py    what happens when: requests, routing, workers, reports
results.py    what became of it
oracle.py     what one shared cache would have found
"""
