"""The simulated engine: all that an engine is to others, with a timing model in place of a model. In reading order:

timing.py      how long steps and transfers take
profiles.py    timings of common GPUs and models, and where they come from
worker.py      the engine as a state machine
tokens.py      what it answers
contents.py    what its KV blocks hold
engine.py      the state machine by the real clock; ``create`` builds it all
"""
