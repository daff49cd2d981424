"""Search a dump and plot what is in it: ``python search_and_plot.py DUMP PATTERN PICTURE``.

The pattern is a regular expression over bytes. Needs pandas and matplotlib.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import matplotlib
import numpy as np
import pandas as pd

import vmdump

matplotlib.use("agg")

LONGEST = 256
"""Bytes of the longest find: so much of each batch is looked at again with the next one."""


def find(dump: vmdump.Dump, pattern: re.Pattern[bytes]) -> Iterator[tuple[int, bytes]]:
    """Give address and bytes of each find, across the borders of pages and batches."""
    tail, tail_address, searched = b"", 0, 0
    for pfn, pages in dump.batches():
        address = pfn * dump.page_size
        if tail_address + len(tail) != address:
            tail, tail_address = b"", address
        data = tail + pages.tobytes()
        for match in pattern.finditer(data):
            begin = tail_address + match.start()
            if begin >= searched:
                yield begin, match[0]
                searched = tail_address + match.end()
        tail, tail_address = data[-LONGEST:], tail_address + len(data) - len(data[-LONGEST:])


def pages_table(dump: vmdump.Dump) -> pd.DataFrame:
    """Give a row for each page: address, how many values its bytes have, and entropy in bits per byte."""
    parts = []
    for pfn, pages in dump.batches():
        # One histogram for all pages: each page's bytes are moved to numbers of its own.
        own = pages + np.arange(len(pages), dtype=np.uint32)[:, None] * 256
        share = np.bincount(own.ravel(), minlength=len(pages) * 256).reshape(-1, 256) / dump.page_size
        bits = -np.sum(share * np.log2(share, where=share > 0, out=np.zeros_like(share)), axis=1)
        addresses = (pfn + np.arange(len(pages), dtype=np.uint64)) * dump.page_size
        parts.append(pd.DataFrame({"address": addresses, "values": (share > 0).sum(axis=1), "entropy": bits}))
    return pd.concat(parts, ignore_index=True)


def main(path: str, pattern: str, picture: str) -> None:
    """Print the finds and a table of the pages, and draw the entropy over the addresses."""
    with vmdump.open(path) as dump:
        finds = pd.DataFrame(find(dump, re.compile(pattern.encode())), columns=["address", "text"])
        pages = pages_table(dump)
    finds["address"] = finds["address"].map(hex)
    print(finds.head(20).to_string(index=False))
    groups = pd.cut(
        pages["entropy"], [-0.1, 0, 2, 4, 6, 7.5, 8], labels=["0", "to 2", "to 4", "to 6", "to 7.5", "to 8"]
    )
    print(groups.value_counts(sort=False).to_string())
    by_mib = pages.groupby(pages["address"] // (1 << 20))["entropy"].mean()
    axes = by_mib.plot(
        xlabel="guest-physical address, MiB", ylabel="entropy, bits per byte", title=path, figsize=(9, 3)
    )
    axes.figure.savefig(picture, bbox_inches="tight")


if __name__ == "__main__":
    main(*sys.argv[1:4])
