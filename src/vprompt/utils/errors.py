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
    """There is no adapter of the name that was asked for, in a bank or on the Hub."""


class TrainingError(VPromptError):
    """A training that cannot start, go on or be resumed."""


class DivergedError(TrainingError):
    """A training whose loss is no longer a number."""


class StorageError(VPromptError):
    """A file that cannot be written: no room, no right, a limit; nothing of it is left behind."""


_NO_MEMORY = ("not enough memory", "allocate memory", "out of memory", "bad_alloc", "failed to map segment")
"""What torch on a CPU, C++ and the system say, who have no error of their own for that."""


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that there was not enough memory.

    Example:
        >>> lacks_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory")), lacks_memory(ValueError("no"))
        (True, False)
    """
    while error is not None:
        text = str(error).lower()
        if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False
