"""The tests of llmproxy, a folder for each layer; `make test` runs them all.

Hypothesis is told here, for pytest and trial alike, not to judge an example by its running time: a busy machine is
not a bug. And it may compare bytes with str among the examples it has drawn, which is an error everywhere else.
"""

import warnings

from hypothesis import HealthCheck, settings

settings.register_profile("llmproxy", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("llmproxy")
warnings.filterwarnings("ignore", category=BytesWarning, module="hypothesis")
