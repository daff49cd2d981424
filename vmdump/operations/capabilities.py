"""What this build can do on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vmdump.codecs.registry import Engine, default_engine, engines
from vmdump.errors import EngineUnavailable
from vmdump.formats.kdump import CODEC_FLAGS
from vmdump.formats.names import FORMATS, LAYOUTS
from vmdump.kernels.zero import default_kernel
from vmdump.kernels.zero import kernels as zero_kernels

__all__ = ["Capabilities", "FormatState", "capabilities"]


@dataclass(frozen=True)
class FormatState:
    """A format, and why it cannot be written if it cannot."""

    name: str
    codec: str
    default_engine: str
    missing: str

    @property
    def available(self) -> bool:
        """True if this build writes it."""
        return not self.missing


@dataclass(frozen=True)
class Capabilities:
    """What this build can do on this machine.

    Attributes
    ----------
    formats : tuple of FormatState
        All that exist.
    layouts : tuple of str
        Of kdump files.
    engines : tuple of Engine
        All that exist, in order of preference for each codec; `missing` says why one is not there.
    zero_kernels : dict
        Zero-page tests by name: empty, or why one cannot be used.
    default_zero_kernel : str
        The one in use.
    """

    formats: tuple[FormatState, ...]
    layouts: tuple[str, ...]
    engines: tuple[Engine, ...]
    zero_kernels: dict[str, str]
    default_zero_kernel: str

    def as_dict(self) -> dict[str, Any]:
        """Give everything by name, for JSON; engines without levels have null for them."""
        facts = asdict(self)
        facts["engines"] = [engine._asdict() for engine in self.engines]
        for engine, row in zip(self.engines, facts["engines"], strict=True):
            if not engine.has_levels:
                row.update(min_level=None, max_level=None, default_level=None)
        return facts


def capabilities() -> Capabilities:
    """Tell which formats, codecs and engines there are, and why others are not."""
    chosen: dict[str, str] = {}
    missing: dict[str, str] = {}
    for codec in CODEC_FLAGS:
        try:
            chosen[codec] = default_engine(codec).name
        except EngineUnavailable as error:
            missing[codec] = str(error)
    return Capabilities(
        formats=tuple(
            FormatState(
                known.name,
                known.codec or "",
                chosen.get(known.codec or "", ""),
                missing.get(known.codec or "", ""),
            )
            for known in FORMATS
        ),
        layouts=LAYOUTS,
        engines=engines(),
        zero_kernels=zero_kernels(),
        default_zero_kernel=default_kernel(),
    )
