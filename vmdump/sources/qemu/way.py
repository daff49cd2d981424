"""A way to a live guest: who answers for it, and what of a dump has to be asked in a way of its own.

The words are QMP's, whoever answers: ``stop``, ``cont``, ``query-status``. What cannot be asked in a way is
refused there as QEMU refuses commands that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from vmdump.formats.elf_headers import ElfHeaders
    from vmdump.sources.process.process import Mapping, Process
    from vmdump.sources.qemu.emulator import Emulator
    from vmdump.sources.qemu.guardian import Guardian
    from vmdump.sources.qemu.pauses import Pauses

__all__ = ["ELSEWHERE", "Commands", "Way"]

ELSEWHERE = "is QEMU on another host, or behind a proxy? run vmdump where it is, on its own socket"
"""What may be wrong where the process that answers is no QEMU with a guest."""

_Result = TypeVar("_Result")


class Commands(Protocol):
    """Executes QMP's commands, in a thread of its own: see :class:`vmdump.sources.qemu.monitor.Monitor`."""

    @property
    def path(self) -> str:
        """What errors name."""

    @property
    def pauses(self) -> Pauses:
        """When the guest was paused since the attach: answers come behind the events of what was before."""

    @property
    def is_this_thread(self) -> bool:
        """True in the thread in which commands are executed."""

    def wait(self, work: Coroutine[Any, Any, _Result], *, cancelled: Callable[[], bool] = ...) -> _Result:
        """Run a coroutine in the thread for commands and wait for its result; may raise Cancelled."""

    async def ask(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        """Execute a command, in that thread; QmpError, with an `error_class` where it is refused."""

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        """Execute a command from any other thread; QmpError as above."""

    def execute_if_known(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        """Execute a command; None where it is refused."""

    def demand_alive(self) -> None:
        """Raise QmpError if nobody answers any more, SourceError if it was closed."""


class Way(Protocol):
    """How a guest is reached."""

    @property
    def commands(self) -> Commands:
        """Who answers."""

    @property
    def pid(self) -> int:
        """QEMU's process, 0 if it is in a namespace that this process cannot see."""

    @property
    def has_quick_headers(self) -> bool:
        """False where taking the headers once more would make the pause much longer."""

    @property
    def remarks(self) -> Sequence[str]:
        """What others see of the visit, that they would not expect."""

    @property
    def respondent(self) -> str:
        """Who has to answer for the guest to run again, for errors."""

    @property
    def cure(self) -> str:
        """What lets a guest run that vmdump could not resume."""

    def demand_dumpable(self) -> None:
        """Check that the guest can be dumped in this way, and that this does no harm.

        Called before anything else is asked.

        Raises
        ------
        CapabilityError
            It cannot: its memory is encrypted, or somebody would suffer.
        QmpError
            Nobody answers.
        """

    def emulator(self) -> Emulator:
        """Tell what the QEMU is.

        Raises
        ------
        QmpError
            Nobody answers.
        """

    def headers(self, cancelled: Callable[[], bool]) -> ElfHeaders:
        """Take the headers of a dump of now: blocks and registers.

        Parameters
        ----------
        cancelled : callable
            Asked while waiting.

        Raises
        ------
        QmpError
            They are refused.
        FormatError, SourceError
            What comes are none.
        Cancelled
            `cancelled` returned true.
        """

    def host_addresses(
        self,
        ranges: Sequence[tuple[int, int]],
        process: Process,
        mappings: Sequence[Mapping],
        cancelled: Callable[[], bool],
    ) -> list[int]:
        """Find out where ranges of guest-physical memory begin in QEMU's process.

        Parameters
        ----------
        ranges : sequence of (int, int)
            Start and size of each block of the headers, ascending.
        process : Process
            QEMU's.
        mappings : sequence of Mapping
            Of that process, of now.
        cancelled : callable
            Asked while waiting.

        Returns
        -------
        list of int
            The address of each range's first byte; the others follow without a gap.

        Raises
        ------
        LayoutError
            A range is not contiguous there, or cannot be found.
        QmpError, Cancelled
            As for :meth:`headers`.
        """

    def start_guardian(self, process: Process) -> Guardian:
        """Start who resumes the guest if vmdump dies, and keeps the process' lock until then.

        Raises
        ------
        SourceError
            It cannot be started.
        """

    def leave(self) -> None:
        """Ask nothing any more, for good, so that the guardian can."""

    def close(self, *, hang_up: bool) -> None:
        """Give back what is open; closing twice does nothing.

        Parameters
        ----------
        hang_up : bool
            End it for everybody who has it open, forked children for example; the guardian is done.
        """
