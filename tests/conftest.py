"""For all tests: property tests draw the same examples in every run, so that a failure is there for everybody."""

from hypothesis import settings

settings.register_profile("tandem", derandomize=True, deadline=None)
settings.load_profile("tandem")
