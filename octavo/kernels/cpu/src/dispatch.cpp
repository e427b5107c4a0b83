// Which instruction set's kernels run: the best that was compiled and that the processor has.
#include "abi.h"

#include <atomic>
#include <cstring>
#include <string>

#include "acts_share.h"
#include "neondot.h"
#include "table.h"

namespace octavo {

int64_t second_every = 4;

#ifdef OCTAVO_HAS_avx512vnni
namespace avx512vnni {
extern const KernelTable table;
}
#endif
#ifdef OCTAVO_HAS_avx2
namespace avx2 {
extern const KernelTable table;
}
#endif
#ifdef OCTAVO_HAS_neondot
namespace neondot {
extern const KernelTable table;
}
#endif
#ifdef OCTAVO_HAS_neon
namespace neon {
extern const KernelTable table;
}
#endif
namespace portable {
extern const KernelTable table;
}

namespace {

struct Isa {
  const char *name;
  const KernelTable *table;
  bool (*is_there)();
};

#if defined(OCTAVO_HAS_avx2) || defined(OCTAVO_HAS_avx512vnni)
// The compiler's run-time function asks cpuid, and xgetbv whether the system saves the registers.
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
}
#endif
#ifdef OCTAVO_HAS_avx512vnni
bool has_avx512vnni() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

const Isa kIsas[] = {
#ifdef OCTAVO_HAS_avx512vnni
    {"avx512vnni", &avx512vnni::table, has_avx512vnni},
#endif
#ifdef OCTAVO_HAS_avx2
    {"avx2", &avx2::table, has_avx2},
#endif
#ifdef OCTAVO_HAS_neondot
    {"neondot", &neondot::table, has_neondot},
#endif
#ifdef OCTAVO_HAS_neon
    {"neon", &neon::table, [] { return true; }},
#endif
    {"portable", &portable::table, [] { return true; }},
};

const Isa *best() {
  for (const Isa &isa : kIsas)
    if (isa.is_there()) return &isa;
  return nullptr;  // unreachable: the portable one is always there
}

std::atomic<const Isa *> &current() {
  static std::atomic<const Isa *> isa{best()};
  return isa;
}

}  // namespace
}  // namespace octavo

using octavo::current;
using octavo::Isa;
using octavo::kIsas;

int32_t octavo_abi() { return OCTAVO_ABI; }

const char *octavo_isas() {
  static const std::string names = [] {
    std::string all;
    for (const Isa &isa : kIsas)
      if (isa.is_there()) all += (all.empty() ? "" : ",") + std::string(isa.name);
    return all;
  }();
  return names.c_str();
}

int32_t octavo_set_isa(const char *name) {
  for (const Isa &isa : kIsas) {
    if (std::strcmp(isa.name, name) == 0 && isa.is_there()) {
      current().store(&isa);
      return 1;
    }
  }
  return 0;
}

int32_t octavo_set_activation_bits(int32_t bits) {
  if (bits != 8 && bits != 16) return 0;
  octavo::second_every = bits == 8 ? 4 : 1;
  return 1;
}

const char *octavo_isa() { return current().load()->name; }

#define OCTAVO_KERNEL(name, params, args) \
  OCTAVO_EXPORT void octavo_##name params { current().load()->table->name args; }
#include "kernels.def"
#undef OCTAVO_KERNEL
