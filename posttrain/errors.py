"""The errors a user can meet, each with the exit code that the command line returns for it.

Floor 0: imports nothing. A message says what was expected, what came and where; `fix` is a line to paste.
"""


class PosttrainError(Exception):
    """An error with a one-line cause, an optional one-line fix and an exit code."""

    exit_code = 1

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.fix = fix

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n  fix: {self.fix}" if self.fix else message


class ConfigError(PosttrainError):
    """A recipe, flag or setting is wrong."""

    exit_code = 2


class ModelError(PosttrainError):
    """A model, tokenizer or adapter cannot be loaded or used."""

    exit_code = 2


class DataError(PosttrainError):
    """Rows are missing, malformed or of the wrong kind."""

    exit_code = 3


class CheckpointError(PosttrainError):
    """A resume was asked for and no usable checkpoint exists."""

    exit_code = 4


class NonFiniteError(PosttrainError):
    """The loss or a gradient was NaN or infinite too often."""

    exit_code = 5


class RewardError(PosttrainError):
    """A reward function or judge failed, or returned the wrong shape or type."""

    exit_code = 6


class StorageError(PosttrainError):
    """A durable write failed."""

    exit_code = 7


class RunLockedError(PosttrainError):
    """Another process holds the run directory."""

    exit_code = 8


class Stopped(PosttrainError):
    """The run was asked to stop, saved a checkpoint and can be resumed."""

    exit_code = 75
