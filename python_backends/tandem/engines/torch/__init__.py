"""The embedded engine: Llama-family models on PyTorch, with a paged KV cache and continuous batching.

In reading order:

    sequence.py       one request inside the engine
    scheduler.py      what runs next
    pace.py           how much of a prompt, while others write
    engine.py         the loop: commands in, steps, events out; ``create`` builds it all
    rank.py           what a rank is made of, leader or follower
    leader.py, follower.py    the two ends of an engine group
    handover.py       leases, handles and pulls
    checks.py         what is refused at once
    counters.py       what the load tells
    plan.py           a step as all ranks do it
    sampler.py        from logits to tokens
    logits.py         what the leader hears of logits
    runner.py         a rank's part of the model and its memory, ready to run steps
    batch.py          one step's rows as tensors
    model.py          the forward pass
    kernels.py        what a layer does between its matrix products: the interface
    torch_kernels.py    … in torch, for every device and dtype
    cpu_kernels.py      … for bf16 on CPU
    compiled.py         … its loops
    attention.py      attention of prefill steps
    kv_cache.py       the paged cache
    block_copy.py, second_tier.py    what goes out of it to the host and to disk
    rotary.py         position embedding
    linear.py         the matrix products
    sharding.py       which part of the model is a rank's own
    config.py, checkpoint.py, weights.py    the checkpoint
    memory.py         the operating system's part
"""
