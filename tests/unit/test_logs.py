"""Lines of a log that programs can read."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from tandem.logs import Logging, about, bind, label, start_logging


@pytest.fixture(autouse=True)
def _restore() -> Any:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def test_a_line_is_one_object_with_all_that_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging(Logging(format="json"), worker="llm")

    async def request(number: int) -> None:
        bind(request_id=f"r{number}", trace_id="")
        await asyncio.sleep(0)
        await asyncio.ensure_future(part())

    async def part() -> None:
        logging.getLogger("tandem.test").info("two\nlines of %d", 7, extra=about(seconds=0.5))

    async def both() -> None:
        await asyncio.gather(request(1), request(2))
        logging.getLogger("tandem.test").debug("not asked for")
        try:
            raise ValueError("no")
        except ValueError:
            logging.getLogger("tandem.test").exception("it failed")

    asyncio.run(both())
    one, two, failed = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    del one["time"], two["time"]
    said = {"level": "info", "logger": "tandem.test", "message": "two\nlines of 7", "worker": "llm", "seconds": 0.5}
    assert one == said | {"request_id": "r1"}
    assert two == said | {"request_id": "r2"}
    assert failed["level"] == "error"
    assert failed["exception"].endswith("ValueError: no")


def test_text_stays_text(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging(Logging(level="warning"), worker="llm")
    logging.getLogger("tandem.test").info("not asked for")
    logging.getLogger("tandem.test").warning("look", extra=about(seconds=0.5))
    assert capsys.readouterr().err.endswith(" WARNING tandem.test: look\n")


def test_what_another_process_said_bears_its_name() -> None:
    assert json.loads(label('{"message": "hello"}', by="rank 1")) == {"message": "hello", "by": "rank 1"}
    assert json.loads(label("Segmentation fault", by="rank 1")) == {"message": "Segmentation fault", "by": "rank 1"}
    assert json.loads(label("17", by="mpiexec")) == {"message": "17", "by": "mpiexec"}
