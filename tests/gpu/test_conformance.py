"""The suite that every engine is held to, on TensorRT-LLM itself; but for what takes a transfer that never ends."""

from tests.unit.engines.conformance.test_cancellation import *  # noqa: F403
from tests.unit.engines.conformance.test_protocol import *  # noqa: F403
from tests.unit.engines.conformance.test_refusals import *  # noqa: F403

del test_in_the_pull, test_a_pull_that_does_not_end_fails_at_its_deadline  # noqa: F821
