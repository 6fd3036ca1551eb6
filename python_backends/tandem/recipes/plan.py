"""All that a build of a recipe does, decided before anything is done."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from tandem.deployment import Worker
from tandem.errors import TandemError
from tandem.messages import StageName
from tandem.recipes.commands import EXAMPLES, Step, plan_engine
from tandem.recipes.memory import check_fit
from tandem.recipes.recipe import Recipe
from tandem.recipes.workers import llm_arguments, make_worker, to_toml, to_yaml

STAGES: tuple[StageName, ...] = get_args(StageName)
EXAMPLES_VARIABLE = "TANDEM_TRTLLM_EXAMPLES"


@dataclass(frozen=True)
class Plan:
    """One build."""

    recipe: Recipe
    steps: list[Step]
    """In their order; none where the checkpoint itself is loaded. One that both stages need stands there once."""
    workers: list[Worker]
    directory: Path
    """Of all that is written."""

    @property
    def worker_file(self) -> Path:
        """Where the sections of a deployment that serve the recipe are written to."""
        return self.directory / "workers.toml"

    @property
    def worker_text(self) -> str:
        """What is written there."""
        return to_toml(self.recipe, self.workers)

    @property
    def files(self) -> dict[Path, str]:
        """What is written beside engines: the deployment's part, and what ``tensorrt_llm.LLM`` will be given for it."""
        given = {
            self.directory / f"{worker.stage}.yaml": to_yaml(llm_arguments(self.recipe, worker))
            for worker in self.workers
        }
        return {self.worker_file: self.worker_text, **given}


def make_plan(recipe: Recipe, out: Path) -> Plan:
    """The build of ``recipe`` under ``out``.

    Raises:
        TandemError: ``invalid_request``: it cannot run on the recipe's GPU, or the checkpoint cannot be read.
    """
    directory = out / recipe.name
    examples = Path(os.environ.get(EXAMPLES_VARIABLE) or EXAMPLES)
    steps: dict[Path, Step] = {}
    workers = []
    for name in STAGES:
        stage = recipe.stage(name)
        check_fit(recipe, name, stage)
        engine_dir = None
        if stage.form == "engine":
            planned = plan_engine(recipe, name, directory, examples)
            steps |= {step.output: step for step in planned if step.output not in steps}
            engine_dir = str(planned[-1].output)
        workers.append(make_worker(recipe, name, engine_dir))
    return Plan(recipe, list(steps.values()), workers, directory)


def check_tools(plan: Plan) -> None:
    """Whether the programs of all steps are on this machine.

    Raises:
        TandemError: ``environment``, naming the first that is missing, and where it is to be had.
    """
    for step in plan.steps:
        for script in (word for word in step.command if word.endswith(".py")):
            if not Path(script).is_file():
                raise TandemError(
                    "environment",
                    f"{script} is missing: NVIDIA's container has these examples; {EXAMPLES_VARIABLE} says where else",
                )
        for program in {step.command[0], step.tool if step.tool == "trtllm-build" else step.command[0]}:
            if shutil.which(program) is None:
                raise TandemError(
                    "environment", f"{program} is missing: build in NVIDIA's Triton container for TensorRT-LLM 1.2"
                )
