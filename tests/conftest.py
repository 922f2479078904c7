"""Settings of all tests."""

from hypothesis import settings

# Speed is measured by bench/: no test fails because the machine was busy. Properties are checked on
# every instruction set, each with examples of its own: fewer for each keep a run below ten minutes.
# The examples are the same in every run, so that a run fails for what was changed since the last;
# `make search` draws others.
settings.register_profile("qwell", deadline=None, max_examples=40, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=200)
settings.load_profile("qwell")
