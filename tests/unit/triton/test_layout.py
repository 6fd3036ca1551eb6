"""Laying out a model repository."""

from pathlib import Path

import msgspec
import pytest

from tandem.deployment import Deployment, Model, Worker, override
from tandem.errors import TandemError
from tandem.triton.layout import lay_out


def write_template(root: Path, name: str, config: str, code: str | None = "code") -> None:
    (root / name).mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(config)
    if code is not None:
        (root / name / "1" / "__pycache__").mkdir(parents=True)
        (root / name / "1" / "__pycache__" / "model.pyc").write_text("old")
        (root / name / "1" / "model.py").write_text(code)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    root = tmp_path / "templates"
    write_template(root, "prefill", 'name: "$model" worker: "$worker"')
    write_template(root, "decode", 'name: "$model" file: "$deployment_file"')
    write_template(root, "llm", 'name: "$model"')
    write_template(root, "ensemble", 'name: "ensemble" price: "$$1"', code=None)
    return root


@pytest.fixture
def three_workers() -> Deployment:
    stages = (("reader", "prefill"), ("writer_a", "decode"), ("writer_b", "decode"))
    return Deployment(
        name="d",
        model=Model(path="m"),
        worker=[Worker(name=name, stage=stage) for name, stage in stages],  # type: ignore[arg-type]
    )


def test_stage_templates_become_one_model_per_worker(sources: Path, three_workers: Deployment, tmp_path: Path) -> None:
    models = tmp_path / "models"
    names = lay_out(three_workers, sources, models, tmp_path / "deployment.json")
    assert names == ["ensemble", "llm", "reader", "writer_a", "writer_b"]
    assert sorted(path.name for path in models.iterdir()) == names
    assert (models / "reader" / "config.pbtxt").read_text() == 'name: "reader" worker: "reader"'
    assert (models / "writer_b" / "config.pbtxt").read_text() == f'name: "writer_b" file: "{tmp_path}/deployment.json"'
    assert (models / "writer_b" / "1" / "model.py").read_text() == "code"


def test_model_without_code_gets_an_empty_version(sources: Path, three_workers: Deployment, tmp_path: Path) -> None:
    lay_out(three_workers, sources, tmp_path / "models", tmp_path / "deployment.json")
    assert list((tmp_path / "models" / "ensemble" / "1").iterdir()) == []
    assert (tmp_path / "models" / "ensemble" / "config.pbtxt").read_text() == 'name: "ensemble" price: "$1"'


def test_compiled_files_are_not_copied(sources: Path, three_workers: Deployment, tmp_path: Path) -> None:
    lay_out(three_workers, sources, tmp_path / "models", tmp_path / "deployment.json")
    assert [path.name for path in (tmp_path / "models" / "llm" / "1").iterdir()] == ["model.py"]


def test_missing_stage_template_is_named(sources: Path, three_workers: Deployment, tmp_path: Path) -> None:
    (sources / "decode" / "config.pbtxt").unlink()
    with pytest.raises(TandemError, match=r"'decode' is missing.*decode/config\.pbtxt"):
        lay_out(three_workers, sources, tmp_path / "models", tmp_path / "deployment.json")


@pytest.mark.parametrize("bad", ["$wroker", "costs $ 3", "${model"])
def test_bad_placeholder_is_named(sources: Path, three_workers: Deployment, tmp_path: Path, bad: str) -> None:
    (sources / "llm" / "config.pbtxt").write_text(f'name: "{bad}"')
    with pytest.raises(TandemError, match=r"llm/config\.pbtxt: bad placeholder .*\$model, \$worker, \$deployment_file"):
        lay_out(three_workers, sources, tmp_path / "models", tmp_path / "deployment.json")


def test_only_what_runs_here_is_laid_out(sources: Path, three_workers: Deployment, tmp_path: Path) -> None:
    """A worker for both stages is made of decode's template."""
    workers = [
        msgspec.structs.replace(worker, address="far:8001", stage="both" if worker.name == "writer_b" else worker.stage)
        for worker in three_workers.worker
    ]
    spread = msgspec.structs.replace(three_workers, worker=workers)
    for number, (only, expected) in enumerate(
        [
            ([], ["ensemble", "llm"]),
            (["reader"], ["reader"]),
            (["writer_b", "gateway"], ["ensemble", "llm", "writer_b"]),
        ]
    ):
        models = tmp_path / f"models{number}"
        names = lay_out(override(spread, only=only), sources, models, tmp_path / "deployment.json")
        assert names == sorted(path.name for path in models.iterdir()) == expected
    assert (tmp_path / "models2" / "writer_b" / "config.pbtxt").read_text().startswith('name: "writer_b" file:')
