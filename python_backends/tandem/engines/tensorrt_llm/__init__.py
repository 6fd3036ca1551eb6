"""TensorRT-LLM as an engine, through its LLM API. docs/tensorrt_llm.md says what is asked of it, and of which version.

In reading order:

    library.py        the only module that imports it, and knows what a version has
    arguments.py      what its constructor is told
    identity.py       who a worker is: model, KV format, library
    requests.py       work as its requests
    answer.py         its growing output as new tokens, and where the answer ends
    handover.py       leases and handles, on top of what it holds and moves itself
    claims.py         decode asks prefill whether a lease still holds
    feeds.py          its statistics and KV events, each read by one reader
    names.py          its block hashes as Tandem's
    logprobs.py       its log-probabilities
    counters.py       what the load tells
    health.py         whether it gets on
    reports.py        what leaves together
    tracks.py         the requests in hand, and what they and handles hold
    engine.py         the loop; ``create`` builds it all
"""
