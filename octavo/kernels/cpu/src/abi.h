// What the library exports, beside the kernels in kernels.def. Plain C: pointers and numbers.
#pragma once

#include <cstdint>

#define OCTAVO_ABI 2
#define OCTAVO_EXPORT extern "C" __attribute__((visibility("default")))

// Element types of activations.
enum { OCTAVO_F32 = 0, OCTAVO_BF16 = 1 };

// OCTAVO_ABI of the build; a caller that expects another one must not go on.
OCTAVO_EXPORT int32_t octavo_abi();

// Names of the instruction sets that were compiled and that this processor has, best first, apart
// by commas.
OCTAVO_EXPORT const char *octavo_isas();

// Take one of them from now on; 0 if it is not among them. The best one is taken by itself.
OCTAVO_EXPORT int32_t octavo_set_isa(const char *name);

// The one in force.
OCTAVO_EXPORT const char *octavo_isa();

// Threads that kernels may use, the caller's among them; at least 1.
OCTAVO_EXPORT void octavo_set_threads(int32_t count);
OCTAVO_EXPORT int32_t octavo_threads();

// --- Packed weights (blocks.h has the layout). `type` is ggml's number of a block format.

// Bytes that a packed matrix takes, or 0 where the format or the shape is not supported.
OCTAVO_EXPORT int64_t octavo_packed_bytes(int32_t type, int64_t rows, int64_t cols);

// Pack rows of stored blocks. `order`, if not null, has for each row the stored row that it is.
// `next` is how many bytes behind `packed` the next part of the same layer begins, 0 for the last.
// Returns 0 where the format or shape is not supported or `order` leaves [0, rows).
OCTAVO_EXPORT int32_t octavo_pack(int32_t type, const uint8_t *stored, const int64_t *order,
                                  int64_t rows, int64_t cols, int64_t next, uint8_t *packed);

// Decode rows of a packed matrix into [count, cols] of `dtype`. Returns 0, with nothing promised
// about `out`, where an id leaves [0, rows).
OCTAVO_EXPORT int32_t octavo_decode_rows(const uint8_t *packed, const int64_t *ids, int64_t count,
                                         void *out, int32_t dtype);
