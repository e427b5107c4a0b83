// Attention of one layer, see attend.cpp.
#pragma once

#include "plan.h"

namespace octavo {
namespace OCTAVO_ISA {

// False where there is no memory.
bool attend(const Op &op, const Step &step);

}  // namespace OCTAVO_ISA
}  // namespace octavo
