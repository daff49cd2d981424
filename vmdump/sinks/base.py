"""What a sink is: the place that the bytes of a dump go to."""

from __future__ import annotations

import contextlib
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from vmdump.errors import SinkError, VmdumpError
from vmdump.interrupts import Deferred

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from vmdump.guest.blocks import HasDescriptor

__all__ = ["Channel", "Sink", "say_kept", "sink_errors"]

_WAYS_OUT = {
    errno.ENOSPC: "free some space, or choose another folder or a stronger compression",
    errno.EDQUOT: "free some of this user's quota",
    errno.EFBIG: "the file system or a limit (ulimit -f) forbids so large a file",
    errno.EPIPE: "the reader went away",
    errno.EACCES: "choose a folder that this user may write to",
    errno.EROFS: "choose a folder on a writable file system",
    errno.ENOENT: "create the folder first",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.EISDIR: "name a file, not a folder",
    errno.EBUSY: "it is in use, mounted for instance; choose another",
    errno.ESTALE: "somebody has put another one in its place; try again",
}


@contextlib.contextmanager
def sink_errors(what: str, name: str) -> Iterator[None]:
    """Turn the OSError of an operation on the sink of that name into a SinkError."""
    try:
        yield
    except VmdumpError:
        raise
    except OSError as error:
        code = error.errno or 0
        raise SinkError(what, path=name, errno=code, hint=_WAYS_OUT.get(code, "")) from error


class Channel(Protocol):
    """Bytes that a sink takes one behind the other, from one position on; for one thread at a time.

    A method that fails raises OSError or Cancelled, and the channel takes nothing more; `Sink.errors` makes a
    SinkError of an OSError. `cancelled` is asked while bytes wait; once it returns true, that is over.
    """

    @property
    def position(self) -> int:
        """Where the next byte goes, counted from the start of the sink."""

    def write(self, data: Buffer, cancelled: Callable[[], bool] | None = None) -> None:
        """Append bytes; they may be changed afterwards."""

    def seek(self, offset: int, cancelled: Callable[[], bool] | None = None) -> None:
        """Go on at another position; only if the sink is seekable."""

    def flush(self, cancelled: Callable[[], bool] | None = None) -> None:
        """Hand everything that was written to the sink."""


class Sink(ABC):
    """Where a dump goes. A context manager: a clean exit commits, an exception aborts, and either closes.

    Whoever writes calls `begin`, writes through channels, flushes them, calls `set_size` and leaves the
    context. A kind of sink has a name and channels. Everything else is, unless it is overridden, what suits
    a pipe: it is written in order, there is nothing to prepare, and nothing can be finished or taken back.
    What is to appear at the end also has `publish` and `abort`. All methods raise SinkError if they fail.

    :mod:`vmdump.sinks.opening` lists the kinds.

    Attributes
    ----------
    name : str
        For people.
    seekable : bool
        Bytes can be put anywhere, and several channels may be open. Otherwise there is one, from position 0.
    sparse : bool
        What is skipped is a hole of zeros, and `clear` takes back what was written; only if it is seekable.
    retractable : bool
        Nothing is seen of it before `publish`, and `retract` removes it again.
    folder : str or None
        A folder beside it that has room for temporary files.
    keeps : bool
        What was written stays if the rest cannot be, provided that :meth:`keep` was called.
    kept_as : str
        The name under which it stays; empty as long as it does not.
    """

    name: str
    seekable = False
    sparse = False
    retractable = False
    folder: str | None = None
    keeps = False
    kept_as = ""

    @abstractmethod
    def channel(self, offset: int = 0) -> Channel:
        """Give a channel that begins at a position; it is of use until `set_size`, `abort` or `close`."""

    def errors(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Turn the OSError of an operation on the sink into a SinkError."""
        return sink_errors(what, self.name)

    def begin(self, files: Iterable[HasDescriptor], in_use: Iterable[os.stat_result] = ()) -> None:
        """Get ready for the first byte; called once more when the guest is held.

        Parameters
        ----------
        files : iterable
            Open files of the guest, none of which may be the sink.
        in_use : iterable of os.stat_result
            What else must not be it: files that the guest's QEMU has open.
        """
        del files, in_use

    def demand(self, size: int) -> None:
        """Refuse at once, with ENOSPC, what needs `size` bytes where it is known that there are fewer."""
        del size

    def room(self) -> int | None:
        """Give the bytes that are free for it; None where nobody knows."""
        return None

    def compresses(self) -> bool:
        """Tell whether fewer bytes may be taken than are written."""
        return False

    def used(self) -> int:
        """Give the bytes that it takes so far; 0 where nobody knows."""
        return 0

    def reserve(self, size: int) -> None:
        """See to it that the first `size` bytes can be written when the disk is full; only if it keeps."""
        raise NotImplementedError(f"{type(self).__name__}.reserve")

    def end(self) -> int:
        """Give the bytes up to the last one that has arrived; only if it keeps."""
        raise NotImplementedError(f"{type(self).__name__}.end")

    def keep(self) -> None:
        """Note that what has arrived can be read, so that `abort` need not take it back; only if it keeps."""
        raise NotImplementedError(f"{type(self).__name__}.keep")

    def clear(self) -> None:
        """Take back what was written; only if the sink is sparse."""
        raise NotImplementedError(f"{type(self).__name__}.clear")

    def set_size(self, size: int) -> None:
        """End the sink at `size`, behind the last byte or hole, when all channels are flushed."""
        del size

    def sync(self) -> None:
        """Make the bytes of what is to be published safe."""
        return

    def publish(self) -> None:
        """Let it appear under its name: the part of `commit` during which signals wait.

        Raises
        ------
        OutputExists
            Something of that name has appeared meanwhile.
        """
        return

    def commit(self) -> None:
        """Sync and publish.

        A signal that comes before the sink is published prevents that. One that comes later is too late.

        Raises
        ------
        OutputExists
            As of `publish`.
        """
        self.sync()
        with Deferred() as signals:
            self.publish()
            signals.settle()

    def retract(self) -> None:
        """Remove it if it was published, and still is what has the name; only if it is retractable."""
        raise NotImplementedError(f"{type(self).__name__}.retract")

    def abort(self) -> None:
        """Take back as much as can be of what was written; once it is published, nothing."""
        return

    def close(self) -> None:
        """Close what was opened for it; once."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.commit()
        except BaseException as failure:
            self.abort()
            say_kept(failure, [self])
            raise
        else:
            if error is not None:
                self.abort()
                say_kept(error, [self])
        finally:
            self.close()


def say_kept(error: BaseException, sinks: Sequence[Sink]) -> None:
    """Let the error that ended a dump say what is kept of it; as its attribute `kept_as`, too.

    Parameters
    ----------
    error : BaseException
        Of which a `VmdumpError` has a text of one line, and any other gets a note.
    sinks : sequence of Sink
        All that were aborted.
    """
    kept = [sink.kept_as for sink in sinks if sink.kept_as]
    if not kept:
        return
    more = f" and {len(kept) - 1} more" if len(kept) > 1 else ""
    text = f"what was written is kept as {kept[0]}{more}; 'vmdump repair' makes an intact dump of it"
    vars(error)["kept_as"] = kept
    if isinstance(error, VmdumpError):
        error.args = (f"{error}; {text}", *error.args[1:])
    else:
        error.add_note(text)
