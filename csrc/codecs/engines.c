/* The list of all compression engines. */
#include "codecs/engine.h"

#define ADDRESS_OF(name) &vmd_engine_##name,
const struct vmd_engine *const vmd_engines[] = {VMD_EACH_ENGINE(ADDRESS_OF) NULL};
