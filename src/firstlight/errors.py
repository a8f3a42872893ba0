"""What firstlight raises on bad input: always what, why, and what to do next.

Every error that a user can cause derives from `FirstlightError`, so that the command line can
print one line and leave with exit code 2, and an application can catch one class.
"""

from __future__ import annotations


class FirstlightError(Exception):
    """Something the user can act on.

    Args:
        subject: the input that is at fault: a file, an option, a request's field.
        reason: what is wrong with it, as a clause without a full stop.
        remedy: what to do next, as a sentence without a full stop.
    """

    def __init__(self, subject: object, reason: str, remedy: str) -> None:
        self.subject = str(subject)
        self.reason = reason.rstrip(".")
        self.remedy = remedy.rstrip(".")
        super().__init__(f"{self.subject}: {self.reason}. {self.remedy}.")


class CheckpointError(FirstlightError):
    """A checkpoint's files are missing, damaged, or contradict each other."""


class UnsupportedModelError(FirstlightError):
    """The checkpoint is well formed, but firstlight does not know its family or a part of it."""


class FormatError(FirstlightError):
    """A tensor's storage format is unknown or cannot be used as asked."""


class TokenizerError(FirstlightError):
    """A tokenizer or chat template is missing, damaged, or misbehaves."""


class HubError(FirstlightError):
    """A model could not be fetched from a hub."""


class RequestError(FirstlightError):
    """A request asks for what cannot be done: a prompt too long, a parameter out of range."""


class InsufficientMemoryError(FirstlightError):
    """The model, or its state at the asked context length, does not fit in memory."""


class DeviceError(FirstlightError):
    """A device is unknown, absent, or failed."""
