"""The run's token: a secret that lives in a file, never in the environment or on a command line."""

import os
import secrets
from pathlib import Path

from hubring_common.errors import UsageError


def read_token(path: Path | None) -> str:
    """The token in `path`. Raises UsageError where it cannot be read or is empty."""
    if path is None:
        raise UsageError("no token file is given", todo="give --token-file; every member has it")
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        fact = f"cannot read the token file {path}: {error}"
        raise UsageError(fact, todo="the file must hold one line of plain text") from None
    if not token:
        raise UsageError(f"the token file {path} is empty")
    return token


def write_token(path: Path) -> str:
    """A new random token, in a file that only this user reads. Raises UsageError."""
    token = secrets.token_urlsafe(32)
    try:
        with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            file.write(token + "\n")
    except OSError as error:
        fact = f"cannot write the token file {path}: {error.strerror}"
        raise UsageError(fact, todo="choose another place with --token-file") from None
    return token
