"""The lockless ring of a kernel's log, built byte by byte in a guest's memory."""

from __future__ import annotations

import struct

SIZE = 1 << 20
BASE = 0xFFFFFFFF80000000
"""Where x86_64 maps the kernel's image; with phys_base 0 this is guest-physical 0."""
PRB, RING, DESCS, INFOS, TEXT = 0x1000, 0x1100, 0x2000, 0x4000, 0x20000
IDS = 1 << 62
RESERVED, COMMITTED, FINALIZED, REUSABLE = range(4)

LINES = f"""\
OSRELEASE=6.1.0
PAGESIZE=4096
NUMBER(phys_base)=0
SYMBOL(prb)={BASE + PRB:x}
OFFSET(printk_ringbuffer.desc_ring)=0
OFFSET(printk_ringbuffer.text_data_ring)=48
SIZE(prb_desc)=24
SIZE(printk_info)=88
OFFSET(prb_desc_ring.count_bits)=0
OFFSET(prb_desc_ring.descs)=8
OFFSET(prb_desc_ring.infos)=16
OFFSET(prb_desc_ring.head_id)=24
OFFSET(prb_desc_ring.tail_id)=32
OFFSET(prb_desc.state_var)=0
OFFSET(prb_desc.text_blk_lpos)=8
OFFSET(prb_data_blk_lpos.begin)=0
OFFSET(prb_data_blk_lpos.next)=8
OFFSET(printk_info.ts_nsec)=8
OFFSET(printk_info.text_len)=16
OFFSET(printk_info.caller_id)=20
OFFSET(prb_data_ring.size_bits)=0
OFFSET(prb_data_ring.data)=8
"""
"""VMCOREINFO of such a kernel."""


class Ring:
    """A lockless ring as printk_ringbuffer.c fills it.

    Attributes
    ----------
    memory : bytearray
        The guest's, from guest-physical address 0 on; :meth:`finish` makes it whole.
    """

    def __init__(self, count_bits: int = 4, size_bits: int = 10, first: int = 0) -> None:
        self.memory = bytearray(SIZE)
        self.count, self.size = 1 << count_bits, 1 << size_bits
        self.head = self.tail = first
        self.position = 0
        self.bits = count_bits, size_bits
        self.empty = True

    def add(
        self,
        text: bytes,
        *,
        state: int = FINALIZED,
        time: int = 0,
        level: int = 6,
        caller: int = 0,
        said: int = -1,
    ) -> None:
        if not self.empty:
            self.head = (self.head + 1) % IDS
        self.empty = False
        need = -(-(8 + len(text)) // 8) * 8
        begin = self.position
        if begin % self.size + need > self.size:  # does not fit behind: it is at the start of the ring
            end = (begin // self.size + 1) * self.size + need
            at = 0
        else:
            at, end = begin % self.size, begin + need
        self.position = end
        struct.pack_into("<Q", self.memory, TEXT + at, self.head)
        self.memory[TEXT + at + 8 : TEXT + at + 8 + len(text)] = text
        self.describe(begin, end, state=state)
        info = struct.pack(
            "<QQHBBI", self.head, time, len(text) if said < 0 else said, 1, level << 5 | 2, caller
        )
        index = self.head % self.count
        self.memory[INFOS + 88 * index : INFOS + 88 * index + len(info)] = info

    def describe(self, begin: int, end: int, *, state: int) -> None:
        struct.pack_into(
            "<QQQ", self.memory, DESCS + 24 * (self.head % self.count), state * IDS + self.head, begin, end
        )

    def finish(self, **changes: int) -> bytearray:
        """Write the heads of the ring, with fields changed, and give the memory."""
        values = {
            "count_bits": self.bits[0],
            "size_bits": self.bits[1],
            "head": 2 * IDS + self.head,
            "tail": 2 * IDS + self.tail,
            "descs": BASE + DESCS,
            "infos": BASE + INFOS,
            "text": BASE + TEXT,
            "ring": BASE + RING,
        } | changes
        struct.pack_into("<Q", self.memory, PRB, values["ring"])
        struct.pack_into(
            "<I4xQQQQ8xI4xQ",
            self.memory,
            RING,
            *(values[name] for name in ("count_bits", "descs", "infos", "head", "tail", "size_bits", "text")),
        )
        return self.memory
