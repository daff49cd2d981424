"""The log of the synthetic guest's kernel: the lockless ring of Linux 5.10 and later."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Protocol

from vmdump.sources.synthetic.pages import PAGE_SIZE

__all__ = ["LOG_LINES", "add_log"]

# Of struct printk_ringbuffer and what it consists of, on 64-bit machines of Linux 6.1.
LOG_LINES = """\
SYMBOL(prb)={prb:x}
SIZE(printk_ringbuffer)=88
OFFSET(printk_ringbuffer.desc_ring)=0
OFFSET(printk_ringbuffer.text_data_ring)=48
OFFSET(printk_ringbuffer.fail)=80
SIZE(prb_desc_ring)=48
OFFSET(prb_desc_ring.count_bits)=0
OFFSET(prb_desc_ring.descs)=8
OFFSET(prb_desc_ring.infos)=16
OFFSET(prb_desc_ring.head_id)=24
OFFSET(prb_desc_ring.tail_id)=32
SIZE(prb_desc)=24
OFFSET(prb_desc.state_var)=0
OFFSET(prb_desc.text_blk_lpos)=8
SIZE(prb_data_blk_lpos)=16
OFFSET(prb_data_blk_lpos.begin)=0
OFFSET(prb_data_blk_lpos.next)=8
SIZE(printk_info)=88
OFFSET(printk_info.seq)=0
OFFSET(printk_info.ts_nsec)=8
OFFSET(printk_info.text_len)=16
OFFSET(printk_info.caller_id)=20
OFFSET(printk_info.dev_info)=24
SIZE(dev_printk_info)=64
OFFSET(dev_printk_info.subsystem)=0
LENGTH(printk_info_subsystem)=16
OFFSET(dev_printk_info.device)=16
LENGTH(printk_info_device)=48
SIZE(prb_data_ring)=32
OFFSET(prb_data_ring.size_bits)=0
OFFSET(prb_data_ring.data)=8
OFFSET(prb_data_ring.head_lpos)=16
OFFSET(prb_data_ring.tail_lpos)=24
SIZE(atomic_long_t)=8
OFFSET(atomic_long_t.counter)=0
"""
_COUNT_BITS, _SIZE_BITS = 5, 12
_DESCRIPTOR, _INFO, _WORD = 24, 88, 8
_ID_BITS = (1 << 62) - 1
_FINALIZED = 2 << 62
_INFO_LEVEL = 6
_STEP = 137_000_000
"""Nanoseconds from a record to the next."""


class _Data(Protocol):
    def allocate(self, size: int) -> int: ...

    def put(self, address: int, content: bytes) -> None: ...

    def virtual(self, address: int) -> int: ...


def add_log(data: _Data, lines: Sequence[str]) -> int:
    """Put a log into memory.

    Parameters
    ----------
    data : object
        The data half of the kernel's image.
    lines : sequence of str
        Records, the oldest first: at most 32, and 4 KiB together.

    Returns
    -------
    int
        Guest-physical address of ``prb``, which is a pointer to the ring.
    """
    pointer, descriptors = data.allocate(PAGE_SIZE), data.allocate(PAGE_SIZE)
    infos, text_ring = data.allocate(_INFO << _COUNT_BITS), data.allocate(1 << _SIZE_BITS)
    ring = pointer + 64
    # The kernel's first record has this number; a descriptor that was never used has none of these.
    first = -(1 << _COUNT_BITS) & _ID_BITS
    position = 0
    for index, line in enumerate(lines):
        text = line.encode()
        number = first + index
        begin, length = position, -(-(_WORD + len(text)) // _WORD) * _WORD
        position += length
        data.put(descriptors + index * _DESCRIPTOR, struct.pack("<3Q", number | _FINALIZED, begin, position))
        info = struct.pack("<2QHBBI", index, index * _STEP, len(text), 0, _INFO_LEVEL << 5, 1)
        data.put(infos + index * _INFO, info)
        data.put(text_ring + begin, struct.pack("<Q", number) + text)
    last = first + len(lines) - 1
    data.put(pointer, struct.pack("<Q", data.virtual(ring)))
    data.put(
        ring,
        struct.pack("<6Q", _COUNT_BITS, data.virtual(descriptors), data.virtual(infos), last, first, last)
        + struct.pack("<4Q", _SIZE_BITS, data.virtual(text_ring), position, 0),
    )
    return pointer
