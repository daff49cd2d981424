"""A pipe that another user's daemon may open by its name in /proc."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from vmdump.errors import SourceError

__all__ = ["held_by"]

_PROGRAM = "cat"
"""Ends when this process does, and does nothing until then."""


@contextmanager
def held_by(user: int, group: int, fd: int) -> Iterator[int]:
    """Let a process of another user have a pipe open, which only root can do; it ends with the context.

    The kernel lets a user look into processes of the same user and group only.

    Parameters
    ----------
    user, group : int
        Of whom.
    fd : int
        An end of a pipe, which becomes that user's; the descriptor has the same number there.

    Yields
    ------
    int
        The process's number.

    Raises
    ------
    SourceError
        It cannot be started.
    """
    try:
        os.fchown(fd, user, group)
        holder = subprocess.Popen(
            [_PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": os.defpath},
            pass_fds=(fd,),
            user=user,
            group=group,
            extra_groups=[],
            start_new_session=True,
        )
    except OSError as error:
        raise SourceError(
            f"cannot start a process of user {user}, whose daemon has to open a pipe",
            path=_PROGRAM,
            errno=error.errno,
        ) from error
    with holder:
        yield holder.pid
