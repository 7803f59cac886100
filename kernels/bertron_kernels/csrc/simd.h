// One register of floats in GCC's vector types: 16 under AVX-512, 8 under AVX2. Types wider than a
// register GCC keeps in memory: one thread's AVX2 products ran at 5 GFLOP/s in place of 89 (Zen 3).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define BERTRON_INLINE static inline __attribute__((always_inline))

namespace {

#ifdef __AVX512F__
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif
typedef float vf __attribute__((vector_size(4 * kLanes)));
typedef int32_t vi __attribute__((vector_size(4 * kLanes)));
typedef uint16_t vh __attribute__((vector_size(2 * kLanes)));
typedef uint8_t vb __attribute__((vector_size(kLanes)));
typedef vf vf_u __attribute__((aligned(4)));
typedef vi vi_u __attribute__((aligned(4)));
typedef vi vi_of_bf16 __attribute__((aligned(2)));
typedef vh vh_u __attribute__((aligned(2)));
typedef vb vb_u __attribute__((aligned(1)));

// Minus zero, not plus: that would be an addition, for the sake of -0.
BERTRON_INLINE vf splat(float value) { return value - vf{}; }
BERTRON_INLINE vi splat(int32_t value) { return value - vi{}; }
// Where either is NaN, `b`. By name: GCC 12 would compare and blend where one is a constant.
#ifdef __AVX512F__
BERTRON_INLINE vf vmax(vf a, vf b) { return _mm512_maskz_max_ps(0xffff, a, b); }
BERTRON_INLINE vf vmin(vf a, vf b) { return _mm512_maskz_min_ps(0xffff, a, b); }
#else
BERTRON_INLINE vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
BERTRON_INLINE vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
#endif

// The lanes, each in the place of the one `distance` (a power of two) from it.
template <int DISTANCE>
BERTRON_INLINE vf exchanged(vf v) {
  vi places;
  for (int i = 0; i < kLanes; ++i) places[i] = i ^ DISTANCE;
  return __builtin_shuffle(v, places);
}
// All lanes together, by halves.
template <class F>
BERTRON_INLINE float folded(vf v, const F& f) {
  if constexpr (kLanes == 16) v = f(v, exchanged<8>(v));
  v = f(v, exchanged<4>(v));
  v = f(v, exchanged<2>(v));
  return f(v, exchanged<1>(v))[0];
}
BERTRON_INLINE float sum(vf v) {
  return folded(v, [](vf a, vf b) __attribute__((always_inline)) { return a + b; });
}
BERTRON_INLINE float largest(vf v) { return folded(v, vmax); }

using bf16 = uint16_t;

BERTRON_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_u*>(p); }
BERTRON_INLINE vi load(const int32_t* p) { return *reinterpret_cast<const vi_u*>(p); }
BERTRON_INLINE vf load(const bf16* p) {
  const vh half = *reinterpret_cast<const vh_u*>(p);
  // By name: GCC 12 would widen by halves.
#ifdef __AVX512F__
  const auto wide = _mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(half));
#else
  const auto wide = _mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(half));
#endif
  return reinterpret_cast<vf>(reinterpret_cast<vi>(wide) << 16);
}
// Two bf16 a lane; a row of odd length, or its neighbour, starts between two 32-bit words.
BERTRON_INLINE vi load_words(const bf16* p) { return *reinterpret_cast<const vi_of_bf16*>(p); }
BERTRON_INLINE void store(float* p, vf v) { *reinterpret_cast<vf_u*>(p) = v; }

// Round to nearest, ties to even; a NaN stays one.
BERTRON_INLINE vh to_bf16(vf v) {
#ifdef __AVX512BF16__
  return reinterpret_cast<vh>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(v)));
#else
  const vi bits = reinterpret_cast<vi>(v);
  const vi rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const vi quiet = bits | 0x400000;
  const vi chosen = v == v ? rounded : quiet;
  return __builtin_convertvector(reinterpret_cast<vi>(chosen) >> 16, vh);
#endif
}
BERTRON_INLINE void store(bf16* p, vf v) { *reinterpret_cast<vh_u*>(p) = to_bf16(v); }
// Whole numbers, 0 to 255.
BERTRON_INLINE void store(uint8_t* p, vf v) {
  const vi words = __builtin_convertvector(v, vi);
#ifdef __AVX512F__
  *reinterpret_cast<vb_u*>(p) = __builtin_convertvector(words, vb);
#else  // GCC 12 would take one after the other
  *reinterpret_cast<vb_u*>(p) = __builtin_convertvector(__builtin_convertvector(words, vh), vb);
#endif
}

BERTRON_INLINE float widen(float value) { return value; }
BERTRON_INLINE float widen(bf16 value) {
  const uint32_t bits = uint32_t(value) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

// The last columns of a row, fewer than kLanes.
template <class T>
BERTRON_INLINE vf load_part(const T* p, int64_t count) {
  T buffer[kLanes] = {};
  std::memcpy(buffer, p, count * sizeof(T));
  return load(buffer);
}
template <class T>
BERTRON_INLINE void store_part(T* p, vf v, int64_t count) {
  T buffer[kLanes];
  store(buffer, v);
  std::memcpy(p, buffer, count * sizeof(T));
}
template <class T>
BERTRON_INLINE vf load_some(const T* p, int64_t left) {
  return left >= kLanes ? load(p) : load_part(p, left);
}
template <class T>
BERTRON_INLINE void store_some(T* p, vf v, int64_t left) {
  left >= kLanes ? store(p, v) : store_part(p, v, left);
}

// 2^x for x <= 0. Cody and Waite: 2^round(x) by the exponent field, 2^rest by its Taylor series,
// whose seventh term is below half an ulp for |rest| <= 1/2. At least 2^-126; a NaN stays one.
BERTRON_INLINE vf exp2_of(vf x) {
  x = vmax(splat(-126.f), x);
  const vf magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to a whole number
  const vf whole = (x + magic) - magic;
  const vf t = x - whole;
  vf p = splat(1.5403530e-4f);
  p = p * t + 1.3333558e-3f;
  p = p * t + 9.6181291e-3f;
  p = p * t + 5.5504109e-2f;
  p = p * t + 2.4022651e-1f;
  p = p * t + 6.9314718e-1f;
  p = p * t + 1.0f;
  const vi exponent = (__builtin_convertvector(whole, vi) + 127) << 23;
  return p * reinterpret_cast<vf>(exponent);
}

// x * Phi(x), exact GELU, as max(x, 0) - a * Phi(-a) with a = |x|: what is approximated is small,
// and so is its error. Phi(-a) is 1 / (2 P(a)^8), a form of Abramowitz and Stegun 1964 (7.1.28),
// fitted to an error of 5e-8 in a * Phi(-a); tests/kernels hold it against float64.
BERTRON_INLINE vf gelu_of(vf x) {
  const vf a = vmin(splat(30.f), vmax(x, -x));  // from 14 on P^8 outgrows a; a NaN stays one
  vf p = splat(2.93211906e-06f);
  p = p * a - 1.67430098e-05f;
  p = p * a + 9.75633811e-05f;
  p = p * a + 1.11393798e-04f;
  p = p * a + 9.80609097e-04f;
  p = p * a + 8.59166682e-03f;
  p = p * a + 4.47887890e-02f;
  p = p * a + 9.97324958e-02f;
  p = p * a + 1.f;
  p *= p;
  p *= p;
  p *= p;
  return vmax(x, vf{}) - 0.5f * a / p;
}

}  // namespace
