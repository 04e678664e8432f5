"""What a bucket's service says when it refuses: as an OSError of the right kind, in a line that holds no credential."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError

_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3} [A-Za-z ]{0,40})")
_REFUSED = ("AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "403", "401")
# Where a machine's or container's role is asked for: nothing else had credentials.
_ROLES = ("169.254.169.254", "169.254.170.2", "metadata.google.internal", "credential")


@contextmanager
def as_os_errors(action: str, path: PurePath, *others: type[Exception]) -> Iterator[None]:
    """Raise what obstore raises as FileNotFoundError, FileExistsError, PermissionError or OSError, naming the action.

    others: errors that stay as they are
    """
    try:
        yield
    except others:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, f"{action} of {path}: {_reason(error)}") from None
    except AlreadyExistsError:
        raise FileExistsError(errno.EEXIST, f"{action} of {path}: something is there") from None
    except (PermissionDeniedError, UnauthenticatedError, BaseError) as error:
        raise _error(action, path, error) from None


def _error(action: str, path: PurePath, error: Exception) -> OSError:
    reason = _reason(error)
    kind = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    if kind or any(word in reason for word in _REFUSED):
        return PermissionError(errno.EACCES, f"{action} of {path} was refused: {reason}")
    return OSError(errno.EIO, f"{action} of {path} failed: {reason}")


def _reason(error: Exception) -> str:
    """Return the status and the service's word for it; what it says at length may quote an access key."""
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    said = [match[1].strip() for match in (status, code) if match]
    if any(word in text.partition("Debug source")[0] for word in _ROLES) and not code:
        return "no credentials were found in the environment, and no role answers"
    if is_cut_off(error):
        said.append("the connection failed or was cut off")
    return ", ".join(said) or type(error).__name__


def is_cut_off(error: Exception) -> bool:
    """Say whether it was the connection, and not the service's answer."""
    return "error sending request" in str(error) or "HTTP error" in str(error)


def cannot_be_used(root: PurePath, error: OSError) -> str:
    """Return the message for an output whose bucket cannot even be listed."""
    reason = error.strerror or str(error)
    if "NoSuchBucket" in reason:
        step = "Create the bucket, or correct its name"
    elif "no credentials" in reason:
        step = (
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (GOOGLE_APPLICATION_CREDENTIALS for gs://), or give the "
            "machine a role; profiles of ~/.aws are not read"
        )
    elif isinstance(error, PermissionError):
        step = "Allow the run's credentials to list, read, write and delete there (s3:ListBucket, s3:GetObject, "
        step += "s3:PutObject, s3:DeleteObject)"
    else:
        step = "Check the network, AWS_REGION, and AWS_ENDPOINT_URL for a service that is not Amazon's"
    return f"output.path: {root} cannot be used: {reason}. {step}"
