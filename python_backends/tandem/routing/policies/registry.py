"""The policies by the names that a deployment file gives them."""

from __future__ import annotations

from collections.abc import Callable

from tandem.deployment import Routing
from tandem.routing.policies.base import Policy
from tandem.routing.policies.kv import KvPolicy
from tandem.routing.policies.least_loaded import LeastLoadedPolicy
from tandem.routing.policies.power_of_two import PowerOfTwoPolicy
from tandem.routing.policies.random import RandomPolicy
from tandem.routing.policies.round_robin import RoundRobinPolicy

POLICIES: dict[str, Callable[[Routing, int], Policy]] = {
    "kv": lambda routing, seed: KvPolicy(seed, routing.spread),
    "least_loaded": lambda _, seed: LeastLoadedPolicy(seed),
    "power_of_two": lambda _, seed: PowerOfTwoPolicy(seed),
    "round_robin": lambda _, seed: RoundRobinPolicy(seed),
    "random": lambda _, seed: RandomPolicy(seed),
}
"""Name to what makes the policy from the deployment's ``[routing]`` and a router's seed."""


def make_policy(routing: Routing, seed: int) -> Policy:
    """The policy that a deployment asks for."""
    return POLICIES[routing.policy](routing, seed)
