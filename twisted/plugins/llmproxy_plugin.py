"""Makes ``twistd llmproxy`` known. Nothing else belongs here: every twistd command imports this file."""

from twisted.application.service import ServiceMaker

llmproxy = ServiceMaker(
    "llmproxy",
    "llmproxy.tap",
    "A reverse proxy between applications and the LLM providers they pay.",
    "llmproxy",
)
