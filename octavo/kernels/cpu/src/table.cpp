// One instruction set's table. Compiled once per set, with OCTAVO_ISA as its name.
#include "table.h"

namespace octavo {
namespace OCTAVO_ISA {

#define OCTAVO_KERNEL(name, params, args) void name params;
#include "kernels.def"
#undef OCTAVO_KERNEL

extern const KernelTable table;
const KernelTable table = {
#define OCTAVO_KERNEL(name, params, args) name,
#include "kernels.def"
#undef OCTAVO_KERNEL
};

}  // namespace OCTAVO_ISA
}  // namespace octavo
