"""Random values, but never a failure because the host was busy."""

from hypothesis import settings

settings.register_profile("qmpsnap", deadline=None)
settings.load_profile("qmpsnap")
