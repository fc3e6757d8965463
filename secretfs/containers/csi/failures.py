"""How a call to the driver can fail, by the status codes of gRPC that the CSI specification gives each failure."""

from typing import ClassVar

from secretfs.errors import ConfigurationError, MountError, SecretFSError


class CallFailure(SecretFSError):
    """A call that cannot be done. The kubelet shows the text in the events of the pod, and asks again later."""

    code: ClassVar[str] = "INTERNAL"


class InvalidArgument(CallFailure):
    """The request itself is wrong."""

    code = "INVALID_ARGUMENT"


class AlreadyExists(CallFailure):
    """The volume is published with other arguments."""

    code = "ALREADY_EXISTS"


class Aborted(CallFailure):
    """Another call for the same volume is under way."""

    code = "ABORTED"


class FailedPrecondition(CallFailure):
    """Something else has to be changed first."""

    code = "FAILED_PRECONDITION"


class PermissionDenied(CallFailure):
    """A pod is not who it is said to be."""

    code = "PERMISSION_DENIED"


class Unavailable(CallFailure):
    """What it takes does not answer now."""

    code = "UNAVAILABLE"


class Unimplemented(CallFailure):
    """The driver has no such call, and has not announced it."""

    code = "UNIMPLEMENTED"


def code_of(error: SecretFSError) -> str:
    """Return the name of the status code for an error."""
    if isinstance(error, CallFailure):
        return error.code
    if isinstance(error, ConfigurationError):
        return InvalidArgument.code
    return Unavailable.code if isinstance(error, MountError) else CallFailure.code
