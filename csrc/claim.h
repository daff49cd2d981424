/* One user at a time, for objects whose calls run without the GIL. */
#ifndef VMD_CLAIM_H
#define VMD_CLAIM_H

#include <stdatomic.h>

struct vmd_claim {
    atomic_flag taken;
};

static inline void vmd_claim_init(struct vmd_claim *claim)
{
    atomic_flag_clear(&claim->taken);
}

/* Returns 1 if the caller now holds the claim, 0 if somebody else does. */
static inline int vmd_claim_take(struct vmd_claim *claim)
{
    return !atomic_flag_test_and_set_explicit(&claim->taken, memory_order_acquire);
}

static inline void vmd_claim_drop(struct vmd_claim *claim)
{
    atomic_flag_clear_explicit(&claim->taken, memory_order_release);
}

#endif
