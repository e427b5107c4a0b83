// How many blocks of a row of activations have a second code (acts.h), for all instruction sets.
#pragma once

#include <cstdint>

namespace octavo {

// One block in so many, those with the largest scales; 1: all. Set before anything is computed.
extern int64_t second_every;

}  // namespace octavo
