"""Settings of all tests."""

from hypothesis import settings

# Speed is measured by bench/: no test fails because the machine was busy. Properties are checked on
# every instruction set, each with examples of its own: fewer for each keep a run below ten minutes.
settings.register_profile("qwell", deadline=None, max_examples=40)
settings.load_profile("qwell")
