"""Runs the fuzz targets, one after another: ``make fuzz``.

FUZZ_SECONDS=120 is the time of each one. ``ARGS="elf bits"`` names targets; ``ARGS="--replay elf FILE"`` runs
one target on one input. What the fuzzers learn stays in ``build/fuzz/corpora``, what they find in
``build/fuzz/findings``. With CI=true it is a failure if a target cannot be run here.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "fuzz"
FINDINGS = BUILD / "findings"
C_TARGETS = ("unpack", "pack", "bits", "pages", "scan", "share", "page_types")
READERS = ("elf", "kdump", "flattened", "split", "ranges")
LIBRARIES = dict(line.split() for line in (ROOT / "csrc/codecs/libraries.txt").read_text().splitlines())
"""Engine, and the name by which pkg-config knows its library."""
MAX_LENGTH = 40000
"""Bytes of an input: a kdump file with a few pages has 25 KB."""
PATIENCE = 10
"""Seconds that one input may take."""
AGAIN = 75
"""Exit code of a reader's target that has to start again: as in readers.py, which only atheris can import."""
MEMORY = 512
"""MiB that a target may have resident; the sanitizers keep 256 of freed memory on top of it."""


@dataclass
class Result:
    """What a target did."""

    target: str
    seconds: float
    executions: int
    corpus: int
    findings: list[Path]
    log: Path
    failed: bool


def find_clang() -> str | None:
    """Give the compiler: $CLANG, or the newest one that is installed."""
    names = [os.environ.get("CLANG", ""), "clang", *(f"clang-{version}" for version in range(30, 10, -1))]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def pkg_config(*arguments: str) -> list[str] | None:
    """Ask pkg-config; None where it does not know."""
    done = subprocess.run(["pkg-config", *arguments], capture_output=True, text=True, check=False)
    return shlex.split(done.stdout) if done.returncode == 0 else None


def build(clang: str, target: str) -> list[str]:
    """Compile a target with csrc/ and every codec library that is here; gives the command that runs it."""
    flags, libraries = [], []
    for engine, package in LIBRARIES.items():
        cflags = pkg_config("--cflags", package)
        if cflags is None:
            print(
                f"fuzz: {package} was not found by pkg-config, so nothing is decoded with it", file=sys.stderr
            )
            continue
        # lzo2.pc names include/lzo, but the headers in there include <lzo/...>.
        parents = [str(Path(flag).parent) for flag in cflags if package == "lzo2" and flag.startswith("-I")]
        flags += [f"-DVMD_HAVE_{engine.upper()}=1", *cflags, *parents]
        libraries += pkg_config("--libs", package) or []
    output = BUILD / target
    subprocess.run(
        [clang, "-std=gnu11", "-O1", "-g", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Icsrc",
         "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", *flags,
         str(HERE / "targets" / f"{target}.c"), *map(str, sorted((ROOT / "csrc").rglob("*.c"))),
         *libraries, "-o", str(output)],
        check=True, cwd=ROOT,
    )  # fmt: skip
    return [str(output), f"-rss_limit_mb={MEMORY + 256}"]


def command(target: str, clang: str | None) -> list[str] | str:
    """Give the command that runs a target, or why there is none."""
    if target in C_TARGETS:
        return build(clang, target) if clang else "clang is not installed"
    if importlib.util.find_spec("atheris") is None:
        return (
            f"atheris is not installed; it has no wheel for each Python, and this is {sys.version.split()[0]}"
        )
    return [sys.executable, str(HERE / "readers.py"), target, f"-rss_limit_mb={MEMORY}"]


def fuzz(target: str, start: list[str], seconds: int) -> Result:
    """Run one target from the seeds and from what earlier runs have learnt."""
    learnt, log = BUILD / "corpora" / target, BUILD / f"{target}.log"
    learnt.mkdir(parents=True, exist_ok=True)
    FINDINGS.mkdir(exist_ok=True)
    before = set(FINDINGS.glob(f"{target}-*"))
    begin, code = time.monotonic(), AGAIN
    with log.open("wb") as file:
        while code == AGAIN and (left := begin + seconds - time.monotonic()) > 1:
            code = subprocess.run(
                [*start, f"-max_total_time={left:.0f}", f"-timeout={PATIENCE}", f"-max_len={MAX_LENGTH}",
                 f"-artifact_prefix={FINDINGS / target}-", "-print_final_stats=1", str(learnt),
                 str(HERE / "corpora" / target)],
                stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False, cwd=ROOT,
                # One arena: of each more glibc reserves 64 MiB of addresses, which is what is limited.
                env={**os.environ, "MALLOC_ARENA_MAX": "1"},
            ).returncode  # fmt: skip
    counts = re.findall(r"stat::number_of_executed_units:\s*(\d+)", log.read_text(errors="replace"))
    return Result(
        target,
        time.monotonic() - begin,
        sum(map(int, counts)),
        len(list(learnt.iterdir())),
        sorted(set(FINDINGS.glob(f"{target}-*")) - before),
        log,
        code not in (0, AGAIN),
    )


def main() -> int:
    """Build, run, and print a line for each target; 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(C_TARGETS + READERS)}")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "FILE"))
    arguments = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    chosen = [arguments.replay[0]] if arguments.replay else arguments.targets or [*C_TARGETS, *READERS]
    unknown = sorted(set(chosen) - {*C_TARGETS, *READERS})
    if unknown:
        parser.error(f"no target {unknown[0]!r}; there are {', '.join(C_TARGETS + READERS)}")
    clang, seconds, status = find_clang(), int(os.environ.get("FUZZ_SECONDS", "120")), 0
    if not arguments.replay:
        print(f"{'target':<12}{'seconds':>9}{'executions':>12}{'corpus':>8}  result", flush=True)
    for target in chosen:
        start = command(target, clang)
        if isinstance(start, str):
            print(f"{target:<12}{'-':>9}{'-':>12}{'-':>8}  not run: {start}", flush=True)
            status |= "CI" in os.environ
            continue
        if arguments.replay:
            return subprocess.run(
                [*start, f"-timeout={PATIENCE}", arguments.replay[1]], check=False
            ).returncode
        result = fuzz(target, start, seconds)
        verdict = "nothing found"
        if result.failed:
            status = 1
            verdict = f"FAILED, see {result.log.relative_to(ROOT)}"
        print(
            f"{target:<12}{result.seconds:>9.0f}{result.executions:>12}{result.corpus:>8}  {verdict}",
            flush=True,
        )
        for finding in result.findings:
            shown = finding.relative_to(ROOT)
            print(f'    {shown}; again with: make fuzz ARGS="--replay {target} {shown}"', flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
