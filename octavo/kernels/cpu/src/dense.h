// Products with plain weights, see dense.cpp.
#pragma once

#include "plan.h"

namespace octavo {
namespace OCTAVO_ISA {

void multiply_dense(const Op &op, const float *x, int64_t num_rows, float *y);

}  // namespace OCTAVO_ISA
}  // namespace octavo
