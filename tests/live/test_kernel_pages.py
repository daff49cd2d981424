"""Types of pages of guests of other architectures, against what their own kernels say: see `kernel_pages.py`.

Here are two whose kernels are small and boot within a minute.
"""

from __future__ import annotations

import random

import pytest
from oracles import judges

from live import kernel_pages, kernels


def missing(kernel: kernels.Kernel) -> str:
    """Say why a kernel's guest cannot be booted, or nothing."""
    try:
        kernels.download(kernel)
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["arm64", "i386"])
def test_types_are_what_the_guest_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernels.KERNELS[name]
    judges.require(f"qemu-system-{kernel.system}")
    # It was to be downloaded before the tests.
    monkeypatch.setenv("APT", "no")
    judges.demand(missing(kernel))
    seed = random.randrange(1 << 32)
    wrong = {}
    for what, holds, found in kernel_pages.judge(name, seed, drgn=False):
        print(f"{what}: {found}")
        if not holds:
            wrong[what] = found
    assert wrong == {}, f"seed {seed}"
