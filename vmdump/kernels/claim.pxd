"""One user at a time, for objects whose calls run without the GIL."""


cdef extern from "claim.h":
    ctypedef struct vmd_claim "struct vmd_claim":
        pass
    bint vmd_claim_take(vmd_claim *claim) noexcept nogil
    void vmd_claim_drop(vmd_claim *claim) noexcept nogil


cdef inline int take(vmd_claim *claim, str user) except -1:
    """Take a claim, or raise RuntimeError; `user` names the object."""
    if not vmd_claim_take(claim):
        raise RuntimeError(f"this {user} is in use by another thread")
    return 0
