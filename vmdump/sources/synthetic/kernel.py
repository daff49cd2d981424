"""The kernel of the synthetic guest: what readers look for in a Linux 6.1 guest, and nothing more.

VMCOREINFO, utsname, a log, page tables, a sparse memory map and register notes, in an image of 2 MiB: text
in the first half, data in the second. There is no code to run and there are no tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmdump.arch.x86_64 import ARCH, PAGE_OFFSET, START_KERNEL_MAP, VMEMMAP_START
from vmdump.formats.notes import VMCOREINFO_NAME, build_note
from vmdump.sources.synthetic.log import LOG_LINES, add_log
from vmdump.sources.synthetic.pages import PAGE_SIZE

__all__ = ["IMAGE_SIZE", "TEXT_SIZE", "Kernel", "build_kernel"]

IMAGE_SIZE = 2 << 20
"""Bytes of the image; as many behind it belong to the memory map and are zero."""
TEXT_SIZE = 1 << 20
"""Bytes of kernel text at the start of the image."""

_RELEASE = "6.1.0-vmdump-synthetic"
_UTSNAME = (
    "Linux",
    "synthetic",
    _RELEASE,
    "#1 SMP PREEMPT_DYNAMIC vmdump synthetic guest",
    "x86_64",
    "(none)",
)
_LOAD_ALIGN = 16 << 20
_LINKED_AT = 0x1000000
"""CONFIG_PHYSICAL_START: where the image would be without KASLR."""

_SECTION_SHIFT = 27
_SECTION_PRESENT = 0x3
"""SECTION_MARKED_PRESENT and SECTION_HAS_MEM_MAP."""
_SECTION_ENTRY = 16
_SECTIONS_PER_ROOT = PAGE_SIZE // _SECTION_ENTRY
_ROOTS = 2048
_NODES = 1024
_PGLIST_SIZE = 174208
_NODE_SPANNED_PAGES = 171576

_VCPUS = 2
_STACK = 16384
_CPU_ENTRY_AREA = 0xFFFFFE0000000000

_TABLE = 0x63
"""Present, writable, accessed, dirty."""
_LARGE = _TABLE | 0x80
_SHIFT_PGD, _SHIFT_PUD, _SHIFT_PMD = 39, 30, 21
_ENTRIES = 512

# In the order and the spelling of Linux 6.1. Symbols that stand for data this guest has not (kallsyms) are
# left out.
_VMCOREINFO = """\
OSRELEASE={release}
BUILD-ID={build_id}
PAGESIZE=4096
SYMBOL(init_uts_ns)={init_uts_ns:x}
OFFSET(uts_namespace.name)=0
SYMBOL(node_online_map)={node_online_map:x}
SYMBOL(swapper_pg_dir)={init_top_pgt:x}
SYMBOL(_stext)={stext:x}
SYMBOL(mem_section)={mem_section:x}
LENGTH(mem_section)=2048
SIZE(mem_section)=16
OFFSET(mem_section.section_mem_map)=0
NUMBER(SECTION_SIZE_BITS)=27
NUMBER(MAX_PHYSMEM_BITS)=46
SIZE(page)=64
SIZE(pglist_data)=174208
SIZE(zone)=1536
SIZE(free_area)=88
SIZE(list_head)=16
SIZE(nodemask_t)=128
OFFSET(page.flags)=0
OFFSET(page._refcount)=52
OFFSET(page.mapping)=24
OFFSET(page.lru)=8
OFFSET(page._mapcount)=48
OFFSET(page.private)=40
OFFSET(page.compound_dtor)=16
OFFSET(page.compound_order)=17
OFFSET(page.compound_head)=8
OFFSET(pglist_data.node_zones)=0
OFFSET(pglist_data.nr_zones)=171552
OFFSET(pglist_data.node_start_pfn)=171560
OFFSET(pglist_data.node_spanned_pages)=171576
OFFSET(pglist_data.node_id)=171584
OFFSET(zone.free_area)=256
OFFSET(zone.vm_stat)=1344
OFFSET(zone.spanned_pages)=144
OFFSET(free_area.free_list)=0
OFFSET(list_head.next)=0
OFFSET(list_head.prev)=8
LENGTH(zone.free_area)=11
{log}LENGTH(free_area.free_list)=5
NUMBER(NR_FREE_PAGES)=0
NUMBER(PG_lru)=4
NUMBER(PG_private)=13
NUMBER(PG_swapcache)=10
NUMBER(PG_swapbacked)=19
NUMBER(PG_slab)=9
NUMBER(PG_head_mask)=65536
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129
NUMBER(HUGETLB_PAGE_DTOR)=2
NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)=-257
NUMBER(phys_base)={phys_base}
SYMBOL(init_top_pgt)={init_top_pgt:x}
NUMBER(pgtable_l5_enabled)=0
SYMBOL(node_data)={node_data:x}
LENGTH(node_data)=1024
KERNELOFFSET={kaslr:x}
NUMBER(KERNEL_IMAGE_SIZE)=1073741824
NUMBER(sme_mask)=0
"""


@dataclass(frozen=True)
class Kernel:
    """The kernel as it lies in memory.

    Attributes
    ----------
    load : int
        Guest-physical address of the image, a multiple of 16 MiB.
    data : (n, 4096) uint8
        The pages behind the text, at most IMAGE_SIZE - TEXT_SIZE bytes.
    notes : bytes
        PRSTATUS of each vCPU, the QEMU note of each, VMCOREINFO.
    """

    load: int
    data: NDArray[np.uint8]
    notes: bytes


class _Data:
    """The data half of the image, handed out from its start.

    Addresses are taken apart here only: an object has a guest-physical address, one in the mapping of the
    kernel's image, and one in the direct map.
    """

    def __init__(self, load: int, kaslr: int) -> None:
        self._begin = load + TEXT_SIZE
        self.phys_base = load - _LINKED_AT - kaslr
        self._memory = np.zeros(IMAGE_SIZE - TEXT_SIZE, np.uint8)
        self._used = 0

    def allocate(self, size: int) -> int:
        """Give the guest-physical address of `size` zero bytes that start at a page."""
        address = self._begin + self._used
        self._used += -(-size // PAGE_SIZE) * PAGE_SIZE
        return address

    def words(self, address: int, count: int) -> NDArray[np.uint64]:
        """Give the `count` 64-bit words at a guest-physical address, to be written to."""
        begin = address - self._begin
        return self._memory[begin : begin + 8 * count].view("<u8")

    def put(self, address: int, content: bytes) -> None:
        """Write bytes to a guest-physical address."""
        begin = address - self._begin
        self._memory[begin : begin + len(content)] = np.frombuffer(content, np.uint8)

    def pages(self) -> NDArray[np.uint8]:
        """Give what has been handed out, as (n, 4096) uint8."""
        return self._memory[: self._used].reshape(-1, PAGE_SIZE)

    def virtual(self, address: int) -> int:
        """Give the address in the mapping of the kernel's image."""
        return START_KERNEL_MAP + address - self.phys_base


def build_kernel(low_end: int, memory_end: int, random: int) -> Kernel:
    """Build the kernel of a guest.

    Parameters
    ----------
    low_end : int
        End of the block at 1 MiB, at least 2 MiB; the image lies near its middle. Below 4 MiB there is
        memory for the image, but none for the memory map behind it.
    memory_end : int
        End of the last block, at most 32 TiB.
    random : int
        64 bits that decide where KASLR maps the image.
    """
    load = low_end // 2 // _LOAD_ALIGN * _LOAD_ALIGN
    # An odd number of 2 MiB, up to 510: phys_base is then never 0, and the image ends below 1 GiB.
    kaslr = (random % 128 * 2 + 1) << 21
    data = _Data(load, kaslr)
    vmcoreinfo = data.allocate(PAGE_SIZE)
    init_uts_ns = data.allocate(PAGE_SIZE)
    data.put(init_uts_ns, b"".join(name.encode().ljust(65, b"\0") for name in _UTSNAME))
    init_top_pgt = _map_memory(data, load, memory_end)
    mem_section = PAGE_OFFSET + _add_sections(data, memory_end)
    node = {name: data.virtual(address) for name, address in _add_node(data, memory_end).items()}
    vcpus = [_registers(data, load, init_top_pgt) for _ in range(_VCPUS)]
    # Last, so that all else lies where it would without it.
    ring = add_log(data, _log_lines(low_end, memory_end))
    text = _VMCOREINFO.format(
        release=_RELEASE,
        build_id=(f"{random:016x}" * 3)[:40],
        init_uts_ns=data.virtual(init_uts_ns),
        init_top_pgt=data.virtual(init_top_pgt),
        stext=data.virtual(load),
        mem_section=mem_section,
        phys_base=data.phys_base,
        kaslr=kaslr,
        log=LOG_LINES.format(prb=data.virtual(ring)),
        **node,
    ).encode()
    data.put(vmcoreinfo, text)
    notes = ARCH.notes(vcpus) + build_note(VMCOREINFO_NAME, 0, text, "little")
    return Kernel(load, data.pages(), notes)


def _log_lines(low_end: int, memory_end: int) -> list[str]:
    """Give what a kernel says when it boots, of a guest of this size."""
    memory = low_end + max(memory_end - (4 << 30), 0)
    return [
        f"Linux version {_RELEASE} ({_UTSNAME[3]})",
        "Command line: console=ttyS0",
        "Hypervisor detected: none (this guest is synthetic)",
        f"Memory: {memory // 1024}K available",
        f"smp: Brought up 1 node, {_VCPUS} CPUs",
        "Run /init as init process",
        "vmdump: nothing runs here; the memory is made up, and always the same",
    ]


def _map_memory(data: _Data, load: int, memory_end: int) -> int:
    """Build the page tables: the image, the direct map and the memory map; give the root's address."""
    pgd, kernel_pud, kernel_pmd, vmemmap_pud, vmemmap_pmd = (data.allocate(PAGE_SIZE) for _ in range(5))
    root = data.words(pgd, _ENTRIES)

    image = data.virtual(load)
    root[_index(image, _SHIFT_PGD)] = kernel_pud | _TABLE
    data.words(kernel_pud, _ENTRIES)[_index(image, _SHIFT_PUD)] = kernel_pmd | _TABLE
    data.words(kernel_pmd, _ENTRIES)[_index(image, _SHIFT_PMD)] = load | _LARGE

    gigabytes = -(-memory_end >> _SHIFT_PUD)
    tables = -(-gigabytes // _ENTRIES)
    direct_pud = data.allocate(tables * PAGE_SIZE)
    data.words(direct_pud, gigabytes)[:] = np.arange(gigabytes) << _SHIFT_PUD | _LARGE
    first = _index(PAGE_OFFSET, _SHIFT_PGD)
    root[first : first + tables] = direct_pud + np.arange(tables) * PAGE_SIZE | _TABLE

    # All sections share the 2 MiB of zeroed struct pages behind the image: to a filter, all is the kernel's.
    sections = _sections(memory_end)
    root[_index(VMEMMAP_START, _SHIFT_PGD)] = vmemmap_pud | _TABLE
    data.words(vmemmap_pud, _ENTRIES)[: -(-sections // _ENTRIES)] = vmemmap_pmd | _TABLE
    data.words(vmemmap_pmd, _ENTRIES)[:sections] = (load + IMAGE_SIZE) | _LARGE
    return pgd


def _index(virtual: int, shift: int) -> int:
    return virtual >> shift & (_ENTRIES - 1)


def _sections(memory_end: int) -> int:
    return -(-memory_end >> _SECTION_SHIFT)


def _add_sections(data: _Data, memory_end: int) -> int:
    """Build the section table of SPARSEMEM_EXTREME; give its address.

    A section's entry is the address of page 0's struct page, whichever section it is: all roots are one.
    """
    sections = _sections(memory_end)
    roots, root = data.allocate(_ROOTS * 8), data.allocate(PAGE_SIZE)
    data.words(roots, _ROOTS)[: -(-sections // _SECTIONS_PER_ROOT)] = PAGE_OFFSET + root
    data.words(root, _ENTRIES)[: 2 * sections : 2] = VMEMMAP_START | _SECTION_PRESENT
    return roots


def _add_node(data: _Data, memory_end: int) -> dict[str, int]:
    """Build the one NUMA node; give the addresses of its symbols."""
    node_online_map, node_data, pglist = (
        data.allocate(size) for size in (PAGE_SIZE, _NODES * 8, _PGLIST_SIZE)
    )
    data.words(node_online_map, 1)[0] = 1
    data.words(node_data, 1)[0] = PAGE_OFFSET + pglist
    data.words(pglist + _NODE_SPANNED_PAGES, 1)[0] = memory_end // PAGE_SIZE
    return {"node_online_map": node_online_map, "node_data": node_data}


def _registers(data: _Data, load: int, cr3: int) -> dict[str, int]:
    """Build the registers of a vCPU that idles in the kernel; flags and limits are what Linux sets."""
    stack, per_cpu = data.allocate(_STACK), data.allocate(PAGE_SIZE)
    return {
        "rax": 0x1AD40,
        "rcx": 1,
        "rdx": 0x4000000000000000,
        "rsi": 0x83,
        "rdi": 0x1F24,
        "rbp": PAGE_OFFSET + per_cpu,
        "rsp": PAGE_OFFSET + stack + _STACK - 0x168,
        "rip": data.virtual(load) + 0x17A0B,
        "rflags": 0x246,
        "cs": 0x10,
        "cs_limit": 0xFFFFFFFF,
        "cs_flags": 0xAF9B00,
        "ss": 0x18,
        "ss_limit": 0xFFFFFFFF,
        "ss_flags": 0xCF9300,
        "gs_base": PAGE_OFFSET + per_cpu,
        "tr": 0x40,
        "tr_limit": 0x4087,
        "tr_flags": 0x8900,
        "tr_base": _CPU_ENTRY_AREA + 0x3000,
        "gdt_limit": 0x7F,
        "gdt_base": _CPU_ENTRY_AREA + 0x1000,
        "idt_limit": 0xFFF,
        "idt_base": _CPU_ENTRY_AREA,
        "cr0": 0x80050033,
        "cr2": 0x4F0215,
        "cr3": cr3,
        "cr4": 0x6A0,
    }
