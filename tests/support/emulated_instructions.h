// Stands in for the AVX-512 and AMX instructions that the CPU library names, so that its tables for
// them run on a CPU without. All else there is in GCC's vector types, which GCC cuts in halves.
#pragma once

#include <immintrin.h>  // before the macros: it shows each instruction by whether they are defined

#include <cstdint>
#include <cstring>

#define __AVX512F__ 1
#define __AVX512VNNI__ 1
#ifdef EMULATE_BF16
#define __AVX512BF16__ 1
#endif

typedef float emulated_floats __attribute__((vector_size(64)));
typedef int32_t emulated_words __attribute__((vector_size(64)));
typedef int32_t emulated_words_u __attribute__((vector_size(64), aligned(4)));
typedef uint16_t emulated_halves __attribute__((vector_size(32)));

static inline __m512i emulated_set1(int32_t value) {
  return reinterpret_cast<__m512i>(value - emulated_words{});
}
static inline __m512i emulated_loadu(const void* p) {
  return reinterpret_cast<__m512i>(
      static_cast<emulated_words>(*static_cast<const emulated_words_u*>(p)));
}
// Unsigned bytes of `a` times signed bytes of `b`, four a word.
static inline __m512i emulated_dpbusd(__m512i total, __m512i a, __m512i b) {
  emulated_words out = reinterpret_cast<emulated_words>(total);
  const emulated_words x = reinterpret_cast<emulated_words>(a);
  const emulated_words y = reinterpret_cast<emulated_words>(b);
  for (int shift = 0; shift < 32; shift += 8)
    out += ((x >> shift) & 0xff) * (y << (24 - shift) >> 24);
  return reinterpret_cast<__m512i>(out);
}
// Pairs of bf16, the odd term first. The instruction also takes subnormal numbers for zero.
static inline __m512 emulated_dpbf16(__m512 total, __m512bh a, __m512bh b) {
  const emulated_words x = reinterpret_cast<emulated_words>(a);
  const emulated_words y = reinterpret_cast<emulated_words>(b);
  const auto odd = [](emulated_words v) {
    return reinterpret_cast<emulated_floats>(v & int32_t(0xffff0000));
  };
  const auto even = [](emulated_words v) { return reinterpret_cast<emulated_floats>(v << 16); };
  emulated_floats out = reinterpret_cast<emulated_floats>(total);
  out += odd(x) * odd(y);
  out += even(x) * even(y);
  return reinterpret_cast<__m512>(out);
}
// To nearest, ties to even; a NaN stays one.
static inline __m256bh emulated_cvtneps(__m512 v) {
  const emulated_floats value = reinterpret_cast<emulated_floats>(v);
  const emulated_words bits = reinterpret_cast<emulated_words>(v);
  const emulated_words rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const emulated_words chosen = value == value ? rounded : (bits | 0x400000);
  return reinterpret_cast<__m256bh>(__builtin_convertvector(chosen >> 16, emulated_halves));
}

// Of each pair of lanes the larger or smaller; where either is NaN, that of `b`. No lane is masked.
static inline __m512 emulated_max(int, __m512 a, __m512 b) {
  const emulated_floats x = reinterpret_cast<emulated_floats>(a);
  const emulated_floats y = reinterpret_cast<emulated_floats>(b);
  return reinterpret_cast<__m512>(x > y ? x : y);
}
static inline __m512 emulated_min(int, __m512 a, __m512 b) {
  const emulated_floats x = reinterpret_cast<emulated_floats>(a);
  const emulated_floats y = reinterpret_cast<emulated_floats>(b);
  return reinterpret_cast<__m512>(x < y ? x : y);
}
static inline __m512i emulated_widen(int, __m256i halves) {
  return reinterpret_cast<__m512i>(
      __builtin_convertvector(reinterpret_cast<emulated_halves>(halves), emulated_words));
}

#define _mm512_set1_epi32 emulated_set1
#define _mm512_loadu_si512 emulated_loadu
#define _mm512_dpbusd_epi32 emulated_dpbusd
#define _mm512_dpbf16_ps emulated_dpbf16
#define _mm512_cvtneps_pbh emulated_cvtneps
#define _mm512_maskz_max_ps emulated_max
#define _mm512_maskz_min_ps emulated_min
#define _mm512_maskz_cvtepu16_epi32 emulated_widen

#ifdef EMULATE_AMX
#define __AMX_TILE__ 1

// The eight tile registers of a thread, and their shapes.
struct emulated_tiles {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } shape;
  alignas(64) int32_t words[8][16][16];
};
static thread_local emulated_tiles emulated;

static inline void emulated_loadconfig(const void* shape) {
  emulated = {};
  std::memcpy(&emulated.shape, shape, sizeof emulated.shape);
}
static inline void emulated_release() { emulated = {}; }
// Where the CPU would refuse the instruction.
static inline void emulated_expect(bool is_allowed) {
  if (!is_allowed) __builtin_trap();
}
static inline void emulated_zero(int tile) {
  emulated_expect(emulated.shape.palette == 1 && emulated.shape.rows[tile] > 0);
  std::memset(emulated.words[tile], 0, sizeof emulated.words[tile]);
}
static inline void emulated_loadd(int tile, const void* from, int64_t stride) {
  const auto& shape = emulated.shape;
  emulated_zero(tile);
  for (int row = 0; row < shape.rows[tile]; ++row)
    std::memcpy(emulated.words[tile][row], static_cast<const char*>(from) + row * stride,
                shape.row_bytes[tile]);
}
static inline void emulated_stored(int tile, void* to, int64_t stride) {
  const auto& shape = emulated.shape;
  emulated_expect(shape.palette == 1 && shape.rows[tile] > 0);
  for (int row = 0; row < shape.rows[tile]; ++row)
    std::memcpy(static_cast<char*>(to) + row * stride, emulated.words[tile][row],
                shape.row_bytes[tile]);
}
template <class Dot>
static inline void emulated_multiply(int sums, int a, int b, const Dot& dot) {
  const auto& shape = emulated.shape;
  emulated_expect(shape.palette == 1 && shape.rows[sums] > 0 && shape.rows[sums] == shape.rows[a] &&
                  shape.row_bytes[a] == 4 * shape.rows[b] &&
                  shape.row_bytes[sums] == shape.row_bytes[b]);
  for (int row = 0; row < shape.rows[sums]; ++row)
    for (int word = 0; word < shape.rows[b]; ++word)
      dot(emulated.words[sums][row], emulated_set1(emulated.words[a][row][word]),
          emulated_loadu(emulated.words[b][word]));
}
static inline void emulated_tile_dpbf16(int sums, int a, int b) {
  emulated_multiply(sums, a, b, [](int32_t* total, __m512i x, __m512i y) {
    __m512 value = reinterpret_cast<__m512>(emulated_loadu(total));
    value = emulated_dpbf16(value, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(y));
    std::memcpy(total, &value, sizeof value);
  });
}
static inline void emulated_tile_dpbusd(int sums, int a, int b) {
  emulated_multiply(sums, a, b, [](int32_t* total, __m512i x, __m512i y) {
    const __m512i value = emulated_dpbusd(emulated_loadu(total), x, y);
    std::memcpy(total, &value, sizeof value);
  });
}

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbusd
#define _tile_loadconfig emulated_loadconfig
#define _tile_release emulated_release
#define _tile_loadd emulated_loadd
#define _tile_stored emulated_stored
#define _tile_zero emulated_zero
#define _tile_dpbf16ps emulated_tile_dpbf16
#define _tile_dpbusd emulated_tile_dpbusd
#endif
