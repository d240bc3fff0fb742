"""Errors that one sentence explains; the command prints the sentence and exits with status 1."""


class VPromptError(Exception):
    """A problem whose message is a sentence for the user: what is wrong, where, and what to do next."""


class BackboneError(VPromptError):
    """A backbone that cannot be made, is not supported, or does not fit what is asked of it."""


class DataError(VPromptError):
    """Images, labels or folders that cannot be used; the message names the file or class."""


class AdapterError(VPromptError):
    """An adapter that cannot be read, does not fit its backbone, or is not whole."""


class UnknownAdapterError(AdapterError):
    """A bank holds no adapter of the name that was asked for."""


class TrainingError(VPromptError):
    """A training that cannot start, go on or be resumed."""


class DivergedError(TrainingError):
    """A training whose loss is no longer a number."""


class StorageError(VPromptError):
    """A file that cannot be written: no room, no right, a limit; nothing of it is left behind."""
