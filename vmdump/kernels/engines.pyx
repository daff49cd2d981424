"""The native engines: those that a build has, and why it lacks the others."""

from vmdump.errors import EngineUnavailable, RequestError

__all__ = ["NATIVE_ENGINES", "checked_level", "checked_page_size", "missing_engines", "native_engines"]


def _names() -> tuple:
    names = []
    while vmd_engines[len(names)] is not NULL:
        names.append(vmd_engines[len(names)].name.decode())
    return tuple(names)


NATIVE_ENGINES = _names()


def native_engines() -> dict:
    """Describe the engines that were built.

    Returns
    -------
    dict of str to dict
        Name to ``codec``, ``version``, ``min_level``, ``max_level``, ``default_level`` and
        ``trained_level``: the level at which `Packer.train` is of use, or None.
    """
    return {
        name: {
            "codec": vmd_engines[i].codec.decode(),
            "version": vmd_engines[i].version().decode(),
            "min_level": vmd_engines[i].min_level,
            "max_level": vmd_engines[i].max_level,
            "default_level": vmd_engines[i].default_level,
            "trained_level": None if vmd_engines[i].train is NULL else vmd_engines[i].trained_level,
        }
        for i, name in enumerate(NATIVE_ENGINES)
        if vmd_engines[i].missing is NULL
    }


def missing_engines() -> dict:
    """Tell why an engine was not built.

    Returns
    -------
    dict of str to str
        Name to reason, of the engines that `native_engines` does not have.
    """
    return {
        name: vmd_engines[i].missing.decode()
        for i, name in enumerate(NATIVE_ENGINES)
        if vmd_engines[i].missing is not NULL
    }


cdef const vmd_engine *find_engine(name) except NULL:
    """The engine of that name, which must have been built."""
    available = native_engines()
    if name in available:
        return vmd_engines[NATIVE_ENGINES.index(name)]
    reason = missing_engines().get(name, "there is no native engine of that name")
    raise EngineUnavailable(
        f"engine {name}: {reason}; this build has {', '.join(available) or 'none'}",
        engine=str(name),
        available=tuple(available),
    )


cpdef size_t checked_page_size(page_size) except 0:
    """Give the page size back, or raise RequestError unless it is 1 B..1 MiB, which every engine can do."""
    if not 0 < page_size <= VMD_MAX_PAGE_SIZE:
        raise RequestError(f"page_size: {page_size} is not in 1..{VMD_MAX_PAGE_SIZE}", parameter="page_size")
    return page_size


cpdef int checked_level(engine, level, int lowest, int highest, int default) except? -1:
    """Give the level back, or `default` for None; raise RequestError where the engine has no such level."""
    if level is None:
        return default
    if not lowest <= level <= highest:
        raise RequestError(f"level: {engine} has {lowest}..{highest}, not {level}", parameter="level")
    return level
