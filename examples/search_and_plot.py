"""Search a dump and plot what is in it: ``python search_and_plot.py DUMP PATTERN PICTURE``.

The pattern is a regular expression over bytes. Needs pandas and matplotlib.
"""

from __future__ import annotations

import re
import sys

import matplotlib
import numpy as np
import pandas as pd

import vmdump

matplotlib.use("agg")


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
        found = list(dump.find(re.compile(pattern.encode())))
        # What follows in the page: the next one may be excluded.
        texts = [dump.read(place, min(24, -place % dump.page_size or 24)) for place in found[:20]]
        pages = pages_table(dump)
    print(f"{len(found)} found; the first ones:")
    print(pd.DataFrame({"address": map(hex, found[:20]), "text": texts}).to_string(index=False))
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
