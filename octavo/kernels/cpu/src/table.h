// The table of kernels that each instruction set fills.
#pragma once

#include <cstdint>

namespace octavo {

struct KernelTable {
#define OCTAVO_KERNEL(name, params, args) void(*name) params;
#include "kernels.def"
#undef OCTAVO_KERNEL
};

}  // namespace octavo
