"""An error on its way across a call."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """A HubringError on the wire, in the call's trailing metadata."""

    kind: str
    fact: str
    who: str = ""
    todo: str = ""
