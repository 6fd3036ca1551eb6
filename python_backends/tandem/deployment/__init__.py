"""The deployment file: which model, which workers, where, and the limits. Read once, at the edge.

deployment.py  the whole
worker.py      [[worker]]; engines.py: what single engines take
model.py, server.py, limits.py, health.py, kv.py, routing.py, parallel.py
               the other sections, each in a file; base.py: what they are made of
file.py        reads the file, and writes the resolved copy; check.py: the rules that span fields
overrides.py   what a command line changes
"""

from tandem.deployment.base import PositiveInt, Section
from tandem.deployment.deployment import Deployment
from tandem.deployment.engines import Faults, LoraAdapter, TensorRtLlm
from tandem.deployment.file import load_deployment, locate, to_json
from tandem.deployment.health import Health
from tandem.deployment.kv import Kv
from tandem.deployment.limits import Limits
from tandem.deployment.model import Model
from tandem.deployment.overrides import override, split_parts
from tandem.deployment.parallel import Parallel
from tandem.deployment.routing import Routing
from tandem.deployment.server import GATEWAY, Server, Tls
from tandem.deployment.worker import Worker

__all__ = [
    "GATEWAY",
    "Deployment",
    "Faults",
    "Health",
    "Kv",
    "Limits",
    "LoraAdapter",
    "Model",
    "Parallel",
    "PositiveInt",
    "Routing",
    "Section",
    "Server",
    "TensorRtLlm",
    "Tls",
    "Worker",
    "load_deployment",
    "locate",
    "override",
    "split_parts",
    "to_json",
]
