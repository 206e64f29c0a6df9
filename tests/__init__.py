"""The tests of llmproxy, a folder for each layer; `make test` runs them all.

Hypothesis is told here, for pytest and trial alike, not to judge an example by its running time: a busy
machine is not a bug.
"""

from hypothesis import settings

settings.register_profile("llmproxy", settings(), deadline=None)
settings.load_profile("llmproxy")
