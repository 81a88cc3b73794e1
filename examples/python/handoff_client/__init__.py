"""A client of Handoff Governor in Python."""

from .client import Answer, Client, Grant, Refused, Result, Sent, Task, Verdict
from .identity import Identity
from .tokens import BadToken, Key, describe
from .tool import Tools

__all__ = [
    "Answer",
    "BadToken",
    "Client",
    "Grant",
    "Identity",
    "Key",
    "Refused",
    "Result",
    "Sent",
    "Task",
    "Tools",
    "Verdict",
    "describe",
]
