"""What is checked, step by step, on one running stack. Each step raises where something is not as it should be."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from tandem.keys import access_word
from tests.compose.load import Load
from tests.compose.machine import run
from tests.compose.stack import OWNER, STOP_S, WORKERS, Stack
from tests.integration.clients import ask_now, generate, generate_stream

LONG = {"text_input": "Tell me a story.", "max_tokens": 400, "ignore_eos": True, "stream": True}
ROTATED_S = 65.0
"""After so long a new handle key signs everywhere."""
FORGOTTEN_S = 3.0
"""After so long a key that was taken out of the files is refused."""


class Failed(Exception):
    """Something is not as it should be."""


def require(condition: object, text: str) -> None:
    """Raises ``Failed`` with ``text``."""
    if not condition:
        raise Failed(text)


def script(name: str, call: str) -> str:
    """One of the scripts beside this file, to be run in a container, with what it is to do there."""
    text = (Path(__file__).parent / f"{name}.py").read_text()
    return f"{text}\n\n{call}\n"


def no_failures(load: Load) -> str:
    """What a step under load says in the end."""
    require(not load.failures, f"{len(load.failures)} of {len(load.answers)} requests failed: {load.failures[:3]}")
    again = f", {load.again} sent again while there was no gateway" if load.again else ""
    return f"{len(load.answers)} requests, none failed{again}"


# ---------------------------------------------------------------- as it is used


def answers(stack: Stack) -> str:
    """Answers over HTTP; every kind of worker gets its share."""
    body = {"text_input": "The capital of France is", "max_tokens": 4}
    text = generate(stack.http_url, "llm", body)["text_output"]
    require("Paris" in text, f"the capital of France is {text!r}")
    with Load(stack.grpc_url) as load:
        for container in stack.containers(*WORKERS):
            load.until_at(stack.address(container))
    return no_failures(load)


def streaming(stack: Stack) -> str:
    """Tokens one by one, over HTTP and gRPC."""
    events = generate_stream(stack.http_url, "llm", LONG | {"max_tokens": 20})
    require(len(events) > 5, f"20 tokens came in {len(events)} events")
    answer = ask_now(stack.grpc_url, "llm", LONG | {"max_tokens": 20})
    require(answer.error is None and len(answer.pieces) > 5, f"{answer}")
    return f"{len(events)} events over HTTP, {len(answer.pieces)} over gRPC, for 20 tokens"


def cancellation(stack: Stack) -> str:
    """A client that leaves leaves nothing behind at any worker."""
    for _ in range(3):
        answer = ask_now(stack.grpc_url, "llm", LONG, leave_after=3)
        require(answer.facts.get("left"), f"it did not leave: {answer}")
    stack.wait_idle()
    return "3 requests left early; no worker has anything of them"


def confinement(stack: Stack) -> str:
    """Nobody is root, may write or gain anything, and only the gateway's two ports are open."""
    containers = stack.containers()
    for container in containers:
        host, config = stack.inspect(container)["HostConfig"], stack.inspect(container)["Config"]
        require(host["ReadonlyRootfs"], f"{container} may write to its root")
        require(host["CapDrop"] == ["ALL"] and not host["CapAdd"], f"{container} has capabilities: {host['CapAdd']}")
        require("no-new-privileges:true" in host["SecurityOpt"], f"{container} may gain privileges")
        require(config["User"] == "tandem", f"{container} runs as {config['User']!r}")
        require(not config["Env"] or not any("HANDLE_KEY=" in one for one in config["Env"]), "the key is in the open")
        ports = stack.inspect(container)["NetworkSettings"]["Ports"]
        opened = {int(place["HostPort"]) for places in ports.values() for place in places or []}
        require(opened == (stack.published if "gateway" in container else set()), f"{container} publishes {opened}")
    return f"{len(containers)} containers"


def metrics(stack: Stack) -> str:
    """Who has Prometheus's certificate reads the metrics of every server."""
    places = {
        stack.address(c): "gateway" if "gateway" in c else "worker" for c in stack.containers("gateway", *WORKERS)
    }
    text = script("reader", f"main({places!r})")
    volume = f"{stack.secrets}/watch:/run/tandem:ro"
    counts = json.loads(stack.visit(text, network="default", volumes=(volume,), user="65534").splitlines()[-1])
    require(len(counts) == len(places) and all(counts.values()), f"Tandem's metrics, by server: {counts}")
    return f"{sum(counts.values())} of Tandem's own at {len(counts)} servers"


def outsiders(stack: Stack) -> str:
    """Another container in the workers' network finds every door closed."""
    found = json.loads(stack.visit(script("outsider", "main()"), network="default").splitlines()[-1])
    require(not found["opened"], f"open to anybody: {found['opened']}")
    return f"{found['tried']} doors, all closed"


def thieves(stack: Stack) -> str:
    """With a worker's certificate alone, no stage can be called, and no handle forged."""
    key = bytes.fromhex((stack.secrets / "worker/handle_key").read_text().split()[0])
    text = script("thief", f"main({access_word(key)!r})")
    told = json.loads(
        stack.visit(text, network="default", volumes=(f"{stack.stolen()}:/run/tandem:ro",)).splitlines()[-1]
    )
    wanted = dict.fromkeys(("hello", "cancel", "plain request", "guessed access"), "[forbidden]")
    wanted |= {"forged handle": "[handle_forged]"}
    for attempt, code in wanted.items():
        require(code in told[attempt], f"{attempt}: {told[attempt]}")
    require(told["true handle"] == "answered", f"a true handle: {told['true handle']}")
    return f"{len(wanted)} attempts, all refused"


def new_key(stack: Stack) -> str:
    """The handle key changes under load, until only the new one is accepted; nothing is restarted."""
    files = [stack.secrets / role / "handle_key" for role in ("worker", "gateway")]
    (old,) = files[0].read_text().split()
    with Load(stack.grpc_url) as load:
        stack.compose("run", "--rm", "secrets", "tandem", "secrets", "/secrets", "--owner", str(OWNER), "--rotate-key")
        contents = [file.read_text().split() for file in files]
        require(contents[0] == contents[1] and contents[0][1] == old, "gateway and workers have different keys")
        time.sleep(ROTATED_S)
        load.until_answers(4)
        for file in files:
            file.write_text(contents[0][0] + "\n")
        time.sleep(FORGOTTEN_S)
        load.until_answers(4)
    call = f"print(call('decode', {access_word(bytes.fromhex(old))!r}))"
    told = stack.visit(script("thief", call), network="default", volumes=(f"{stack.stolen()}:/run/tandem:ro",))
    require("[forbidden]" in told, f"with the old key: {told}")
    return no_failures(load)


# ---------------------------------------------------------------- as it is hurt


def killed(stack: Stack) -> str:
    """A prefill and a decode worker lose power in turn, and come back."""
    with Load(stack.grpc_url) as load:
        load.until_answers(4)
        for service in ("decode", "prefill"):
            container = stack.containers(service)[0]
            stack.kill(container)
            load.until_answers(12)
            stack.start(container)
            load.until_at(stack.address(container))
    return no_failures(load)


def crashed(stack: Stack) -> str:
    """A server dies inside its container, which Docker starts again."""
    (container,) = stack.containers("decode")
    before = stack.restarts(container)
    with Load(stack.grpc_url) as load:
        load.until_answers(4)
        stack.crash(container)
        load.until("a restart by Docker", lambda _: stack.restarts(container) > before)
        load.until_at(stack.address(container))
    return no_failures(load)


def paused(stack: Stack) -> str:
    """All of a decode worker freezes, longer than it takes to be given up, and goes on."""
    (container,) = stack.containers("decode")
    with Load(stack.grpc_url) as load:
        load.until_answers(4)
        stack.pause(container)
        try:
            load.until_answers(12)
        finally:
            stack.resume(container)
        load.until_at(stack.address(container))
    return no_failures(load)


def cut_off(stack: Stack) -> str:
    """A worker loses its network, and has it again."""
    container = stack.containers("prefill")[-1]
    with Load(stack.grpc_url) as load:
        load.until_answers(4)
        stack.disconnect(container)
        try:
            load.until_answers(12)
        finally:
            stack.connect(container)
        load.until_at(stack.address(container))
    return no_failures(load)


def rank_lost(stack: Stack) -> str:
    """The container of a group's second rank loses power; the group starts again when it is back."""
    (rank,), (group,) = stack.containers("rank"), stack.containers("group")
    with Load(stack.grpc_url) as load:
        load.until_at(stack.address(group))
        stack.kill(rank)
        load.until_answers(12)
        stack.start(rank)
        load.until_at(stack.address(group))
    return no_failures(load)


# ---------------------------------------------------------------- as it is changed


def scaled(stack: Stack) -> str:
    """A third decode worker comes and goes under load."""
    numbers = {"prefill": 2, "decode": 1}
    with Load(stack.grpc_url) as load:
        load.until_answers(4)
        stack.up(**numbers | {"decode": 2})
        for container in stack.containers("decode"):
            load.until_at(stack.address(container))
        stack.up(**numbers)
        require(len(stack.containers("decode")) == 1, f"still there: {stack.containers('decode')}")
        load.until_answers(12)
    return no_failures(load)


def restarted(stack: Stack) -> str:
    """Every service is restarted in turn under load: workers one by one, a rank while its group is stopped, the gateway
    at last."""
    with Load(stack.grpc_url) as load:
        for container in stack.containers("prefill", "decode"):
            run("docker", "restart", "--time", "90", container, timeout=STOP_S)
            load.until_at(stack.address(container))
        (group,), (rank,) = stack.containers("group"), stack.containers("rank")
        run("docker", "stop", "--time", "90", group, timeout=STOP_S)
        run("docker", "restart", rank, timeout=STOP_S)
        stack.start(group)
        load.until_at(stack.address(group))
        load.gateway_restarts = True
        stack.compose("restart", "--timeout", "90", "gateway")
        load.until_answers(12)
    stack.wait_healthy()
    return no_failures(load)


def logs(stack: Stack) -> str:
    """Nothing in the logs of any server is worth an alarm."""
    found = []
    for container in stack.containers("gateway", *WORKERS):
        text = stack.execute(container, "sh", "-c", "cat .tandem/run/*/logs/*.log")
        words = ("Traceback", "double free", "Segmentation", "internal error", "AddressSanitizer")
        found += [f"{container}: {line[:200]}" for line in text.splitlines() if any(w in line for w in words)]
    require(not found, f"{len(found)} lines: {found[:3]}")
    return "no traceback, no crash"


STEPS: list[Callable[[Stack], str]] = [
    answers, streaming, cancellation, confinement, metrics, outsiders, thieves, new_key,
    scaled, killed, crashed, paused, cut_off, rank_lost, restarted, logs,
]  # fmt: skip
