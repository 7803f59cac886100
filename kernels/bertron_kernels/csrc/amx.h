// Sums of products in AMX's tile registers, each up to 16 rows of 64 bytes.
//
// A tile of a packed weight is 16 words of 16 columns, as they stand in a panel; a tile of a row's
// words, 16 words of up to 16 rows. Their product adds 32 bf16 or 64 int8 terms to each of 256 sums.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels.h"
#include "simd.h"

namespace {

constexpr int64_t kAmxRows = 16, kAmxWords = 16, kAmxColumns = 16;
// What one block holds: 2 x 2 tiles of sums, or 1 x 4.
constexpr int64_t kAmxBlockRows = 2 * kAmxRows;

#ifdef __AMX_TILE__

// The shapes of the tile registers, which are the thread's own. Held while a thread computes its
// part of an op; an idle thread's are given back, so that nobody saves 8 KiB for it.
class AmxShape {
 public:
  AmxShape() = default;
  AmxShape(const AmxShape&) = delete;
  AmxShape& operator=(const AmxShape&) = delete;
  ~AmxShape() {
    if (rows_ != 0) _tile_release();
  }

  // For blocks of 1 to 32 rows. Up to 16: sums in 0 to 3, rows in 4, columns in 5 to 7. Beyond: sums
  // of the first 16 in 0 and 1, of the others in 2 and 3; rows in 4 and 5, columns in 6 and 7.
  void of_rows(int64_t rows) {
    if (rows == rows_) return;
    rows_ = rows;
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    const uint8_t first = rows < kAmxRows ? rows : kAmxRows, second = rows - first;
    shape.rows[0] = shape.rows[1] = shape.rows[4] = first;
    shape.rows[2] = shape.rows[3] = second ? second : first;
    if (second) shape.rows[5] = second;
    asm volatile("" : : "r"(&shape) : "memory");  // GCC 12 believes that it reads 8 bytes
    _tile_loadconfig(&shape);
  }

 private:
  int64_t rows_ = 0;
};

// tile += rows x columns; the registers' numbers are part of the instruction.
#define BERTRON_AMX_DOT(sums, rows, columns)                                            \
  if constexpr (PRODUCT == bertron::Product::bf16) _tile_dpbf16ps(sums, rows, columns); \
  else _tile_dpbusd(sums, rows, columns)

// 16 x (COLUMNS * 16) sums of one tile of rows; strides in bytes.
template <bertron::Product PRODUCT, int COLUMNS>
BERTRON_INLINE void amx_block_1(const char* a, int64_t a_stride, const char* b, int64_t b_stride,
                                int64_t words, char* out, int64_t out_stride) {
  _tile_zero(0);
  if constexpr (COLUMNS > 1) _tile_zero(1);
  if constexpr (COLUMNS > 2) _tile_zero(2);
  if constexpr (COLUMNS > 3) _tile_zero(3);
  for (int64_t word = 0; word < words; word += kAmxWords) {
    _tile_loadd(4, a, a_stride);
    _tile_loadd(5, b, b_stride);
    BERTRON_AMX_DOT(0, 4, 5);
    if constexpr (COLUMNS > 1) {
      _tile_loadd(6, b + 64, b_stride);
      BERTRON_AMX_DOT(1, 4, 6);
    }
    if constexpr (COLUMNS > 2) {
      _tile_loadd(7, b + 128, b_stride);
      BERTRON_AMX_DOT(2, 4, 7);
    }
    if constexpr (COLUMNS > 3) {
      _tile_loadd(5, b + 192, b_stride);
      BERTRON_AMX_DOT(3, 4, 5);
    }
    a += kAmxWords * 4;
    b += kAmxWords * b_stride;
  }
  _tile_stored(0, out, out_stride);
  if constexpr (COLUMNS > 1) _tile_stored(1, out + 64, out_stride);
  if constexpr (COLUMNS > 2) _tile_stored(2, out + 128, out_stride);
  if constexpr (COLUMNS > 3) _tile_stored(3, out + 192, out_stride);
}

// The same of two tiles of rows.
template <bertron::Product PRODUCT, int COLUMNS>
BERTRON_INLINE void amx_block_2(const char* a, int64_t a_stride, const char* b, int64_t b_stride,
                                int64_t words, char* out, int64_t out_stride) {
  _tile_zero(0);
  _tile_zero(2);
  if constexpr (COLUMNS > 1) {
    _tile_zero(1);
    _tile_zero(3);
  }
  const int64_t second = kAmxRows * a_stride;
  for (int64_t word = 0; word < words; word += kAmxWords) {
    _tile_loadd(4, a, a_stride);
    _tile_loadd(6, b, b_stride);
    BERTRON_AMX_DOT(0, 4, 6);
    _tile_loadd(5, a + second, a_stride);
    BERTRON_AMX_DOT(2, 5, 6);
    if constexpr (COLUMNS > 1) {
      _tile_loadd(7, b + 64, b_stride);
      BERTRON_AMX_DOT(1, 4, 7);
      BERTRON_AMX_DOT(3, 5, 7);
    }
    a += kAmxWords * 4;
    b += kAmxWords * b_stride;
  }
  _tile_stored(0, out, out_stride);
  _tile_stored(2, out + kAmxRows * out_stride, out_stride);
  if constexpr (COLUMNS > 1) {
    _tile_stored(1, out + 64, out_stride);
    _tile_stored(3, out + kAmxRows * out_stride + 64, out_stride);
  }
}

#undef BERTRON_AMX_DOT

// rows x columns sums over `words`, at most kAmxBlockRows rows, whole tiles of columns and words;
// written as they are, float or int32.
template <bertron::Product PRODUCT>
void amx_columns(AmxShape& shape, int64_t rows, const void* a, int64_t a_stride, const void* b,
                 int64_t b_stride, int64_t columns, int64_t words, void* out, int64_t out_stride) {
  shape.of_rows(rows);
  asm volatile("" ::: "memory");  // GCC 12 does not know that a tile's load reads memory
  const char *left = static_cast<const char*>(a), *right = static_cast<const char*>(b);
  char* to = static_cast<char*>(out);
  const auto run = [&](auto block, int64_t width) __attribute__((always_inline)) {
    block(left, a_stride, right, b_stride, words, to, out_stride);
    right += width * 64;
    to += width * 64;
  };
  int64_t tiles = columns / kAmxColumns;
  if (rows > kAmxRows) {
    for (; tiles >= 2; tiles -= 2) run(amx_block_2<PRODUCT, 2>, 2);
    if (tiles == 1) run(amx_block_2<PRODUCT, 1>, 1);
    return;
  }
  for (; tiles >= 4; tiles -= 4) run(amx_block_1<PRODUCT, 4>, 4);
  if (tiles >= 2) run(amx_block_1<PRODUCT, 2>, 2), tiles -= 2;
  if (tiles == 1) run(amx_block_1<PRODUCT, 1>, 1);
}

#endif

}  // namespace
