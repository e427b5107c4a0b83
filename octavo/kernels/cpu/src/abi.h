// What the library exports, beside the kernels in kernels.def. Plain C: pointers and numbers.
#pragma once

#include <cstdint>

#define OCTAVO_ABI 4
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

// Bits of activations in products with packed weights: 8, with what that leaves over kept for the
// quarter of a row's blocks with the largest scales (as it is at first), or 16, where it is kept for
// all. Not to be changed once anything was computed. Returns 0 for another number.
OCTAVO_EXPORT int32_t octavo_set_activation_bits(int32_t bits);

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

// --- Texts to ids by a SentencePiece vocabulary that has no merges (pieces.cpp).

// The pieces, UTF-8, with a 0 between each two; ids are their places. `ranks`, if not null, says of
// each piece how early it is made, the lowest first; else its id does. Those with `whole` stay one
// token wherever a text has them. Null where a piece is empty, two are equal, or one is missing of
// those for single bytes (<0x0A>) and the space (U+2581).
OCTAVO_EXPORT void *octavo_pieces_new(const char *text, int64_t num_bytes, int64_t count,
                                      const int32_t *ranks, const uint8_t *whole);
OCTAVO_EXPORT void octavo_pieces_free(void *pieces);

// The id of a piece, or -1.
OCTAVO_EXPORT int32_t octavo_pieces_find(const void *pieces, const char *text, int64_t len);

// Ids of a text in UTF-8 into `ids`, room for 2 * len + 1; how many, or -1 without memory. `prefix`
// puts a space before: nothing (0), a text that does not begin with one (1), each stretch between
// pieces that stay whole (2). Any number of threads may call it at once.
OCTAVO_EXPORT int64_t octavo_pieces_encode(const void *pieces, const char *text, int64_t len,
                                           int32_t prefix, int32_t *ids);

// Every two pieces that make a third, as pairs of ids in the order of merges, into `pairs` if there
// is `room` for so many; how many there are, or -1 without memory.
OCTAVO_EXPORT int64_t octavo_pieces_merges(const void *pieces, int32_t *pairs, int64_t room);

// --- Strings of a GGUF file (strings.cpp).

// Bytes that `count` strings take, each behind its length in 8 bytes; -1 where they go beyond
// `size`, -2 where one holds a 0. `out`, if not null, gets them with a 0 between each two.
OCTAVO_EXPORT int64_t octavo_strings(const char *data, int64_t size, int64_t count, char *out);
