// Threads that share the rows of one kernel. Knows no kernel.
#pragma once

#include <cstdint>

namespace octavo {

// A piece of work: items [begin, end). `thread` is in [0, num_threads()), one piece at a time each.
using Piece = void (*)(void *context, int64_t begin, int64_t end, int32_t thread);

// Run `piece` over [0, count) in runs of `grain` items (the last one shorter), in the calling thread
// and as many others as are free; returns when all are done. One run is done without the pool. A
// second caller at the same time does its own work alone. `piece` must not throw.
void parallel_for(int64_t count, int64_t grain, Piece piece, void *context);

// Threads that a piece may run in, the caller's among them.
int32_t num_threads();

// At least `bytes` of memory, aligned to 64, of the calling thread's own; valid until its next call
// with the same `slot` (0 to 3). Null where there is no memory.
void *scratch(int32_t slot, int64_t bytes);

}  // namespace octavo
