"""Every error that fornix raises on purpose.

Each message names the value that was wrong, the limit or the expectation, and what to do. An error
with a `code` can travel: a server sends it as a reply, a client raises it again under its own class.
"""

from typing import ClassVar


class FornixError(Exception):
    """Base of all errors that fornix raises on purpose."""

    code: ClassVar[str] = "ERROR"


class ProtocolError(FornixError):
    """A message that can't be read: not msgpack, truncated, oversized, hostile, or of another version."""

    code = "PROTOCOL"


class InvalidRequestError(FornixError):
    """A readable request that asks for something impossible: wrong shape, range, or order of steps."""

    code = "INVALID"


class SignatureError(FornixError):
    """What a client expects of a table differs from what the table holds."""

    code = "SIGNATURE"


class UnknownTableError(FornixError):
    """A request names a table that the server doesn't have."""

    code = "UNKNOWN_TABLE"


class UnknownWriterError(FornixError):
    """A request names a writer that was never opened, or that the server forgot when it restarted."""

    code = "UNKNOWN_WRITER"


class FencedError(FornixError):
    """A newer incarnation of this writer has taken its place; this one may not write any more."""

    code = "FENCED"


class SequenceError(FornixError):
    """A writer's sequence number leaves a gap, or is older than anything that can be answered again."""

    code = "SEQUENCE"


class EvictedError(FornixError):
    """A step that is needed for the answer has been overwritten: the ring is too small for its use."""

    code = "EVICTED"


class WaitTimeoutError(FornixError):
    """A request waited at the server until its deadline; the message says for what, and what opens it."""

    code = "WAIT_TIMEOUT"


class UnreachableError(FornixError):
    """No server answered before the deadline."""

    code = "UNREACHABLE"


class ServerError(FornixError):
    """The server met a fault of its own while it handled a request. It lives on; please report it."""

    code = "SERVER"


class ConfigurationError(FornixError):
    """A configuration, flag or environment variable with a wrong key, type or range."""

    code = "CONFIGURATION"


class AddressError(FornixError):
    """An address that can't be used: malformed, not `tcp://` or `ipc://`, or in use already."""

    code = "ADDRESS"


class CheckpointError(FornixError):
    """A checkpoint that is missing, damaged, or does not fit; or that could not be written."""

    code = "CHECKPOINT"


class StorageError(FornixError):
    """Files of a memory that can't be kept: no room, no access, damage, or another format."""

    code = "STORAGE"


class DiskError(FornixError):
    """The disk didn't take what was written; the server that wrote it ends, since it can't promise more."""

    code = "DISK"

    @classmethod
    def of(cls, error: OSError) -> "DiskError":
        """Return the error that stands for one of the system's."""
        return cls(
            f"the disk did not take what was written: {error.strerror or error}; nothing more can be "
            f"promised, so the server ends: look at the disk, then start the server again"
        )


class EpisodeFileError(FornixError):
    """A file of episodes that can't be written or read: there already, damaged, or of something else."""

    code = "EPISODE_FILE"


class TrainingError(FornixError):
    """Training that can't go on: its numbers are not finite any more."""

    code = "TRAINING"


def error_from_code(code: str, message: str) -> FornixError:
    """Return the error that a server's error reply stands for (`FornixError` for an unknown code)."""
    known = {kind.code: kind for kind in FornixError.__subclasses__()}
    return known.get(code, FornixError)(message)
