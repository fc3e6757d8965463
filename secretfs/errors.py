"""Every error secretfs raises, its errno and its exit code.

    SecretFSError
    ├── ConfigurationError      a manifest, configuration, flag or setting is    EINVAL  exit 2
    │                           wrong; EINVAL for a request to reload it
    ├── MountError              the kernel or the mount point refuses                    exit 3
    ├── CommandError            a command that is not there, or cannot be run            127, 126
    ├── JournalUnreadable       what is known of a mount cannot be taken over            exit 3
    ├── NoSuchEntry             a path that is not there for this app            ENOENT
    ├── NoSuchAttribute         an extended attribute that is not there          ENODATA
    ├── ReadOnly                a write                                          EROFS
    ├── Superseded              a version whose bytes are lost                   ESTALE
    ├── AppRemoved              an open file of an app that has been removed     ESTALE
    ├── TooLarge                a request to .secretfs/refresh over the limit    EFBIG
    ├── TooManyRequests         requests of one app that wait, over the limit    EAGAIN
    ├── RecordLost              an open that cannot be recorded, and must be     EPERM
    └── StoreError              a secret store could not give an answer          EIO     exit 4
        ├── SecretNotFound      the store says there is no such secret           ENOENT
        ├── AccessDenied        the store knows us and refuses, or does not      EACCES
        │                       accept our credentials
        ├── DeadlineExceeded    no answer in time                                ETIMEDOUT
        │   └── NoTurn          other calls were before this one all the time    ETIMEDOUT
        ├── StoreUnavailable    network, overload, a server error, sealed        EIO
        │   └── TLSFailure      one side refuses the other's certificate         EIO
        ├── MalformedAnswer     the store answered something we cannot read      EBADMSG
        ├── AmbiguousNames      two secrets want the same shell variable         ENOTUNIQ
        ├── NotRepresentable    a value that the asked format cannot carry       EILSEQ
        └── RenderingFailed     a file cannot be made of its secrets             EBADMSG
            └── PartMissing     because one of them is not there, or hidden      EBADMSG

The errno is a class attribute: this file is the only place that decides one. A message names stores, secrets, files and
fields; it never carries a value, nor the text of a backend's answer, which may hold one.
"""

import errno
import logging
from typing import ClassVar, NamedTuple


class Source(NamedTuple):
    """The place in a file where something was declared."""

    path: str
    line: int = 0
    """Counted from 1; 0 when the file as a whole is meant."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path


class Notice(NamedTuple):
    """Something a user should know although it stops nothing: a warning, or an error under ``check --strict``."""

    message: str
    source: Source | None = None
    fix: str = ""
    """What to do about it, where the message does not say."""
    unsafe: bool = False
    """Whether secrets may come from somewhere else, or be less protected, than the user means: an error in the log."""
    unread: bool = False
    """Whether it is about a document that cannot be read, and is passed over."""

    def log_to(self, logger: logging.Logger) -> None:
        """Log it, as loud as it is serious."""
        logger.log(logging.ERROR if self.unsafe else logging.WARNING, "%s", self)

    def __str__(self) -> str:
        text = with_fix(self.message, self.fix)
        return f"{self.source}: {text}" if self.source else text


def with_fix(reason: str, fix: str) -> str:
    """Say what is wrong, and what to do about it."""
    return f"{reason}; {fix}" if fix else reason


class SecretFSError(Exception):
    """Base of all errors of secretfs."""

    errno: ClassVar[int] = errno.EIO
    exit_code: int = 1


class ConfigurationError(SecretFSError):
    """Something a user wrote is wrong. Stops before anything is mounted."""

    errno = errno.EINVAL
    exit_code = 2

    def __init__(self, message: str, source: Source | None = None) -> None:
        super().__init__(message)
        self.source = source

    def __str__(self) -> str:
        message = super().__str__()
        return f"{self.source}: {message}" if self.source else message


class MountError(SecretFSError):
    """The mount point, the kernel or fusermount3 refuses."""

    exit_code = 3

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix
        """The way out, where there is one."""

    def __str__(self) -> str:
        return with_fix(self.reason, self.fix)


class CommandError(SecretFSError):
    """The command of ``secretfs run`` cannot be run. The exit codes are those of env(1), nohup(1) and shells."""

    exit_code = 126

    def __init__(self, name: str, error: OSError) -> None:
        super().__init__(f"cannot run {name}: {error.strerror}")
        if isinstance(error, FileNotFoundError):
            self.exit_code = 127


class JournalUnreadable(SecretFSError):
    """The journal of a mount cannot be used: the mount is made anew."""

    exit_code = 3


class StoreError(SecretFSError):
    """A secret store could not give an answer."""

    exit_code = 4
    meaning: ClassVar[str] = "a call failed; the log has the reason"
    """The error without its text, which may name a secret: for the status of a store."""


class SecretNotFound(StoreError):
    """The store answered that there is no such secret."""

    errno = errno.ENOENT


class AccessDenied(StoreError):
    """The store refuses: the credentials are not good, or not good enough for this."""

    errno = errno.EACCES
    meaning = "a call was refused; the log says which"


class DeadlineExceeded(StoreError):
    """The store did not answer in time."""

    errno = errno.ETIMEDOUT
    meaning = "a call was not answered in time"


class NoTurn(DeadlineExceeded):
    """The store was not called in time: too many other calls were before this one. That is no failure of the store."""


class StoreUnavailable(StoreError):
    """The store cannot answer now and may later: connection refused, overloaded, sealed, a server error."""

    meaning = "the store cannot answer now; the log has the reason"


class TLSFailure(StoreUnavailable):
    """There is no TLS connection: one side refuses the other's certificate, or the server does not speak TLS.

    New certificates or another address may cure it, so it is worth reading them again.
    """


class MalformedAnswer(StoreError):
    """The store answered something that is not what its protocol promises."""

    errno = errno.EBADMSG
    meaning = "an answer could not be read; the log says which"


class AmbiguousNames(StoreError):
    """Two secrets map to one name where only one can be carried."""

    errno = errno.ENOTUNIQ


class NotRepresentable(StoreError):
    """A value that the asked format cannot carry, such as a NUL byte in a shell variable."""

    errno = errno.EILSEQ


class RenderingFailed(StoreError):
    """A rendered file cannot be made: its template is at fault, or does not fit what its secrets are."""

    errno = errno.EBADMSG
    meaning = "a file cannot be rendered; the log has the reason"


class PartMissing(RenderingFailed):
    """A secret or a folder that a rendered file asks for is not there, or hidden, which must look the same."""

    meaning = "a secret that a file asks for is not there, or hidden"


class NoSuchEntry(SecretFSError):
    """A path that does not exist for this app: unknown, out of scope or hidden, which must look the same."""

    errno = errno.ENOENT


class NoSuchAttribute(SecretFSError):
    """An extended attribute that this file does not have."""

    errno = errno.ENODATA


class ReadOnly(SecretFSError):
    """An attempt to change something: secrets are changed in their store."""

    errno = errno.EROFS


class TooLarge(SecretFSError):
    """More than may be written at once."""

    errno = errno.EFBIG


class Superseded(SecretFSError):
    """A version whose bytes were lost with the process that had them, while its path leads to another one.

    ESTALE makes the kernel repeat a call by path, once, and go on with what it finds (``retry_estale`` in fs/namei.c).
    A program sees it when it reads from a file that it had open before.
    """

    errno = errno.ESTALE


class AppRemoved(SecretFSError):
    """A file of an app that has been removed while a program had it open."""

    errno = errno.ESTALE


class TooManyRequests(SecretFSError):
    """Too many requests of one app wait already."""

    errno = errno.EAGAIN


class RecordLost(SecretFSError):
    """What a program does cannot be written to the audit log, and must be (``--audit-fail-closed``)."""

    errno = errno.EPERM


def log_defect(logger: logging.Logger, error: BaseException) -> None:
    """Log where an unexpected exception came from, without its text: that may quote a value."""
    bare = Exception(f"{type(error).__name__} (its text is withheld: it may quote a secret)")
    logger.error("a defect in secretfs or in a store", exc_info=(type(bare), bare, error.__traceback__))


def as_store_error(logger: logging.Logger | None, error: BaseException) -> StoreError:
    """Make an error of a store of whatever it raised. ``logger`` gets the place of a defect.

    The text of a defect stays unsaid: it may quote a secret.
    """
    if isinstance(error, StoreError):
        return error
    if isinstance(error, SecretFSError):
        return StoreError(str(error))
    if logger is not None:
        log_defect(logger, error)
    return StoreError(f"unexpected {type(error).__name__}; the log has the place")
