"""Malformed requests by lane, gRPC and HTTP: each is answered, nothing dies. ``make fuzz`` sends more of them."""

from __future__ import annotations

from fuzz import fuzz, make_deployment

from tandem.triton.server import TritonServer

REQUESTS = 300


def test_malformed_requests_are_answered_and_harm_nobody() -> None:
    with TritonServer(make_deployment()) as server:
        findings = fuzz(server, seed=7, count=REQUESTS)
    assert findings.wrong == []
    assert findings.answered == REQUESTS
    kinds = {kind for kind, _ in findings.outcomes}
    assert kinds == {"lane", "grpc", "grpc bytes", "infer", "generate", "generate_stream"}
    outcomes = {outcome for _, outcome in findings.outcomes}
    assert {"answer", "[invalid_request]", "refused by Triton"} <= outcomes
