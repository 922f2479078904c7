"""Settings of all tests."""

from hypothesis import settings

# Speed is measured by bench/: no test fails because the machine was busy.
settings.register_profile("qwell", deadline=None)
settings.load_profile("qwell")
