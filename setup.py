"""The extension list: which kernels are built, from which files, with which codec libraries.

``VMDUMP_WITH_ISAL`` (and ``_LIBDEFLATE``, ``_ZLIB``, ``_LZO2``, ``_SNAPPY``, ``_ZSTD``) is ``auto``, ``on``
or ``off``. ``VMDUMP_DEBUG=1`` builds with bounds checks, and with the address and
undefined-behaviour sanitizers.

The kernels use the limited API of `OLDEST` only, so that one build serves that Python and all later ones. A
free-threaded Python has no limited API: a build is for that very version.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

OLDEST = (3, 11)
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")

# Engine, and the name by which pkg-config knows its library.
LIBRARIES = dict(line.split() for line in Path("csrc/codecs/libraries.txt").read_text().splitlines())
DEBUG = os.environ.get("VMDUMP_DEBUG", "0") not in ("", "0")
SANITIZE = ["-fsanitize=address,undefined"] if DEBUG else []


def pkg_config(*arguments: str) -> str | None:
    """Ask pkg-config; None if it knows nothing or is not installed."""
    command = [*shlex.split(os.environ.get("PKG_CONFIG", "pkg-config")), *arguments]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def extension(name: str, *c_files: str) -> Extension:
    """One kernel: its .pyx and its C files."""
    return Extension(
        f"vmdump.kernels.{name}",
        [f"vmdump/kernels/{name}.pyx", *(f"csrc/{c_file}" for c_file in c_files)],
        include_dirs=["csrc"],
        depends=sorted(map(str, Path("csrc").rglob("*.h"))),
        define_macros=[("Py_LIMITED_API", "0x{:02x}{:02x}0000".format(*OLDEST))] if LIMITED else [],
        py_limited_api=LIMITED,
        extra_compile_args=[
            *("-std=c11", "-fvisibility=hidden", "-Wall", "-Wextra"),
            # What the limited API lacks would be missed only when a kernel is imported.
            "-Werror=implicit-function-declaration",
            *(("-O1", "-g", "-fno-omit-frame-pointer") if DEBUG else ("-O3",)),
            *SANITIZE,
        ],
        extra_link_args=[*SANITIZE],
    )


def add_library(kernel: Extension, engine: str) -> str:
    """Add a codec library to a kernel, or the reason why it is not there; returns the line of the summary."""
    package, variable = LIBRARIES[engine], f"VMDUMP_WITH_{engine.upper()}"
    wanted = os.environ.get(variable, "auto")
    if wanted not in ("auto", "on", "off"):
        raise SystemExit(f"{variable}={wanted}: must be auto, on or off")
    version = None if wanted == "off" else pkg_config("--modversion", package)
    if version is None:
        reason = f"{variable}=off" if wanted == "off" else f"{package} was not found by pkg-config"
        if wanted == "on":
            raise SystemExit(
                f"{variable}=on, but {reason}: install its development package, or set {variable}=auto or off"
            )
        kernel.define_macros.append((f"VMD_WITHOUT_{engine.upper()}", f'"not built: {reason}"'))
        return f"  {engine:<12}no   ({reason})"
    cflags = shlex.split(pkg_config("--cflags", package) or "")
    # lzo2.pc names include/lzo, but the headers in there include <lzo/...>.
    parents = [str(Path(flag).parent) for flag in cflags if engine == "lzo2" and flag.startswith("-I")]
    kernel.extra_compile_args += cflags + parents
    kernel.extra_link_args += shlex.split(pkg_config("--libs", package) or "")
    kernel.define_macros += [
        (f"VMD_HAVE_{engine.upper()}", "1"),
        (f"VMD_VERSION_{engine.upper()}", f'"{version}"'),
    ]
    return f"  {engine:<12}yes  ({version})"


class BuildKernels(build_ext):
    """In an editable build, take away the kernels of a single version, which Python would prefer."""

    def run(self) -> None:
        super().run()
        if LIMITED and self.inplace:
            for file in Path("vmdump/kernels").glob("*.cpython-*.so"):
                file.unlink()


codecs = [f"codecs/{engine}.c" for engine in LIBRARIES]
engines = extension("engines", "codecs/engines.c", "incompressible.c", *codecs)
summary = [add_library(engines, engine) for engine in LIBRARIES]
print("vmdump: compression engines", *summary, sep="\n", flush=True)

setup(
    ext_modules=cythonize(
        [
            extension("zero", "zero.c"),
            extension("bits", "bits.c"),
            extension("hash", "hash.c"),
            extension("scan", "scan.c", "read.c", "hash.c"),
            extension("share", "share.c"),
            extension("find", "find.c"),
            extension("gather", "gather.c"),
            extension("records", "records.c", "read.c"),
            engines,
            extension("pack", "pack.c", "incompressible.c", "scan.c", "read.c", "hash.c"),
            extension("unpack", "unpack.c"),
            extension("cache", "cache.c"),
            extension("page_types", "page_types.c"),
        ],
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "initializedcheck": False,
            "cdivision": True,
            "embedsignature": True,
            "freethreading_compatible": True,
            "binding": True,
        },
        # Cython compares times, not directives: each mode has its own C files.
        build_dir="build/cython-debug" if DEBUG else "build/cython",
    ),
    cmdclass={"build_ext": BuildKernels},
    options={
        # Nothing else notices that a library was installed meanwhile, or that a variable has changed.
        "build_ext": {"force": True},
        "bdist_wheel": {"py_limited_api": "cp{}{}".format(*OLDEST) if LIMITED else None},
    },
)
