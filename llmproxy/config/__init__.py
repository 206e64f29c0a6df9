"""YAML in, one frozen and strict ``Config`` out. Complaints name file, line, path and the nearest key.

The way of a value: ``document`` reads a file into a tree in which every node knows its line; ``check`` holds
the tree against ``schema`` (what keys there are, as data) with ``values`` (what one value may be);
``overlay`` lays the files over each other; ``providers`` and ``rules`` judge what needs more than one key;
``loading`` calls them in this order and makes the ``Config`` of ``model``. ``report`` is the same seen by a
person: check-config and show-config.
"""

from llmproxy.config.complaint import ConfigError
from llmproxy.config.loading import load
from llmproxy.config.model import Config

__all__ = ["Config", "ConfigError", "load"]
