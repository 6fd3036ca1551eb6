"""Laying out the Triton model repository of a deployment from the templates in ``model_repository/``.

A template is a directory with ``config.pbtxt`` and, unless Triton itself runs the model, ``1/model.py``. Templates
named after a stage become one model per worker of that stage, under the worker's name (a worker for both stages has
decode's template); all others, which make the gateway, one model. Only what runs on this Triton is laid out.
In ``config.pbtxt`` these are replaced: ``$model`` (the model's name), ``$worker`` (the worker's name; the model's
own for models that are no workers), ``$deployment_file`` (path of the resolved deployment).
"""

from __future__ import annotations

import shutil
import string
from pathlib import Path
from typing import get_args

from tandem.deployment import Deployment
from tandem.errors import TandemError
from tandem.messages import Role, StageName

_STAGES: tuple[StageName, ...] = get_args(StageName)
_TEMPLATES: dict[Role, StageName] = {"prefill": "prefill", "decode": "decode", "both": "decode"}


def lay_out(deployment: Deployment, templates: Path, models: Path, deployment_file: Path) -> list[str]:
    """Write the repository into ``models`` (created, must not exist); returns the models' names, workers last.

    Raises:
        TandemError: ``environment``, when a template is missing or names an unknown ``$placeholder``.
    """
    models.mkdir(parents=True)
    found = sorted(path.parent.name for path in templates.glob("*/config.pbtxt"))
    for stage in _STAGES:
        if stage not in found:
            raise TandemError(
                "environment", f"the template of stage {stage!r} is missing: {templates / stage / 'config.pbtxt'}"
            )
    plan = [(name, name) for name in found if name not in _STAGES] if deployment.has_gateway else []
    plan += [(worker.name, _TEMPLATES[worker.stage]) for worker in deployment.workers_here]
    for model, template in plan:
        _instantiate(templates / template, models / model, deployment_file)
    return [model for model, _ in plan]


def _instantiate(template: Path, model: Path, deployment_file: Path) -> None:
    """Copy one template as the model ``model.name``."""
    config = template / "config.pbtxt"
    values = {"model": model.name, "worker": model.name, "deployment_file": str(deployment_file)}
    try:
        text = string.Template(config.read_text()).substitute(values)
    except (KeyError, ValueError) as error:
        known = ", ".join(f"${name}" for name in values)
        raise TandemError("environment", f"{config}: bad placeholder {error}; those known are {known}") from error
    if (template / "1").is_dir():
        shutil.copytree(template / "1", model / "1", ignore=shutil.ignore_patterns("__pycache__"))
    else:
        (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(text)
