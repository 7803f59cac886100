// Attention inside each sequence, one (head, sequence) at a time, a tile of query rows against all
// keys.
#pragma once

#include "gemm.h"

namespace {

constexpr float kLog2E = 1.44269504f;

// Queries, keys and values of one head of one sequence; `stride` elements from token to token.
template <class T>
struct Head {
  const T *query, *key, *value;
  T* y;
  int64_t length, stride, head_dim, y_stride;
};

// Lane j of vector i for lane i of vector j: by halves, quarters and so on of the whole square.
template <int DISTANCE = kLanes / 2>
BERTRON_INLINE void transpose(vi* rows) {
  vi low, high;  // lanes of two vectors, those of the second behind the first's
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool is_second = lane & DISTANCE;
    low[lane] = is_second ? lane - DISTANCE + kLanes : lane;
    high[lane] = is_second ? lane + kLanes : lane + DISTANCE;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & DISTANCE) continue;
    const vi a = rows[i], b = rows[i + DISTANCE];
    rows[i] = __builtin_shuffle(a, b, low);
    rows[i + DISTANCE] = __builtin_shuffle(a, b, high);
  }
  if constexpr (DISTANCE > 1) transpose<DISTANCE / 2>(rows);
}

// Keys to panels of words, as a packed weight. Scores of keys that do not exist are never read.
template <class Dot, class T>
void pack_keys(const Head<T>& h, int64_t words, uint32_t* out) {
  constexpr int64_t per_word = bertron::values_per_word(Dot::product);
  static_assert(per_word == 1 || std::is_same_v<T, bf16>);
  const int64_t whole = h.head_dim / per_word / kLanes * kLanes;  // words, in whole vectors
  for (int64_t s0 = 0; s0 < h.length; s0 += kLanes) {
    uint32_t* place = out + s0 / kPanel * words * kPanel + column_place(s0 % kPanel, words);
    const int64_t count = std::min(kLanes, h.length - s0);
    const T* keys = h.key + s0 * h.stride;
    for (int64_t w = 0; w < whole; w += kLanes) {
      vi block[kLanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) {
        const T* values = keys + i * h.stride + w * per_word;
        if (i >= count) block[i] = vi{};
        else if constexpr (per_word == 1) block[i] = reinterpret_cast<vi>(load(values));
        else block[i] = load_words(values);
      }
      transpose(block);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i)
        std::memcpy(place + (w + i) * kTileColumns, &block[i], sizeof block[i]);
    }
    for (int64_t w = whole; w < words; ++w) std::fill_n(place + w * kTileColumns, kLanes, 0);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = whole * per_word; d < h.head_dim; ++d) {
        char* word = reinterpret_cast<char*>(place + d / per_word * kTileColumns + i);
        const T value = keys[i * h.stride + d];
        if constexpr (per_word == 1) *reinterpret_cast<float*>(word) = widen(value);
        else reinterpret_cast<bf16*>(word)[d % 2] = value;
      }
  }
}

// Values to words along the tokens: [words][D rounded up], for the second product; zeros after S.
template <class Dot, class T>
void pack_values(const Head<T>& h, int64_t words, int64_t padded_dim, uint32_t* out) {
  constexpr int64_t per_word = bertron::values_per_word(Dot::product);
  const int64_t used = parts_of(h.length, per_word);
  std::fill_n(out + used * padded_dim, (words - used) * padded_dim, 0);
  for (int64_t w = 0; w < used; ++w) {
    uint32_t* place = out + w * padded_dim;
    for (int64_t d = 0; d < padded_dim; d += kLanes) {
      const int64_t left = h.head_dim - d;
      const T* first = h.value + w * per_word * h.stride + d;
      if constexpr (per_word == 1) {
        store(reinterpret_cast<float*>(place + d), load_some(first, left));
      } else {
        // A bf16 is the upper half of its float: two rows make one word without arithmetic.
        const bool has_second = w * 2 + 1 < h.length;
        const vi low = reinterpret_cast<vi>(load_some(first, left));
        const vi high = has_second ? reinterpret_cast<vi>(load_some(first + h.stride, left)) : vi{};
        const vi word = ((low >> 16) & 0xffff) | high;
        std::memcpy(place + d, &word, sizeof word);
      }
    }
  }
}

template <class Dot, class T>
void attend(const Head<T>& h, float scale, Sums<Dot>& sums_of) {
  constexpr int64_t per_word = bertron::values_per_word(Dot::product);
  constexpr int64_t tile_rows = Dot::tile_rows;
  // AMX takes words by the tile; zeros fill the last.
  constexpr int64_t step = has_amx(Dot::product) ? kAmxWords : 1;
  const int64_t key_words = parts_of(h.head_dim, per_word * step) * step;
  const int64_t value_words = parts_of(h.length, per_word * step) * step;
  const int64_t padded_dim = (h.head_dim + kLanes - 1) / kLanes * kLanes;
  const int64_t panels = bertron::panels(h.length), padded = panels * kPanel;
  uint32_t* keys = scratch<uint32_t>(0, padded * key_words);
  uint32_t* values = scratch<uint32_t>(1, value_words * padded_dim);
  float* scores = scratch<float>(2, tile_rows * (padded + padded_dim));
  float* context = scores + tile_rows * padded;  // [tile_rows][padded_dim]
  uint32_t* rows = scratch<uint32_t>(3, tile_rows * (key_words + padded + kLanes));
  uint32_t* weights = rows + tile_rows * (key_words + kLanes);  // [tile_rows][value_words]
  pack_keys<Dot>(h, key_words, keys);
  pack_values<Dot>(h, value_words, padded_dim, values);

  const bool in_place = sizeof(T) * per_word == 4 && h.head_dim == key_words * per_word &&
                        h.stride % per_word == 0;
  const float to_exponent = scale * kLog2E;
  // What stands at columns c and on of a row, but for the lanes beyond the last key. Not by writing
  // those lanes first: a vector that was just written in pieces is waited for.
  const int64_t whole = h.length / kLanes * kLanes;
  vi last;
  for (int i = 0; i < kLanes; ++i) last[i] = i < h.length - whole ? -1 : 0;
  const auto of_keys = [&](vf v, int64_t c, float otherwise) __attribute__((always_inline)) {
    return c < whole ? v : last ? v : splat(otherwise);
  };
  for (int64_t s0 = 0; s0 < h.length; s0 += tile_rows) {
    const int64_t count = std::min(tile_rows, h.length - s0);
    const word_u* query = reinterpret_cast<const word_u*>(h.query + s0 * h.stride);
    int64_t query_stride = h.stride / per_word;
    if (!in_place) {
      query_stride = key_words + kLanes;
      for (int64_t i = 0; i < count; ++i) {
        const T* row = h.query + (s0 + i) * h.stride;
        uint32_t* place = rows + i * query_stride;
        if (key_words * per_word > h.head_dim) std::fill_n(place, key_words, 0);
        row_to<typename Dot::Row>(row, h.head_dim, place);
      }
      query = rows;
    }
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t left = h.length - panel * kPanel;
      const int64_t columns = (std::min(kPanel, left) + kLanes - 1) / kLanes * kLanes;
      sums_of(count, query, query_stride, keys + panel * key_words * kPanel, kTileColumns,
              key_words * kTileColumns, columns, key_words, scores + panel * kPanel, padded);
    }
    float inverse[tile_rows];
    for (int64_t i = 0; i < count; ++i) {
      float* row = scores + i * padded;
      vf high = splat(-INFINITY);
      for (int64_t c = 0; c < h.length; c += kLanes)
        high = vmax(of_keys(load(row + c), c, -INFINITY), high);
      // Subtracted first: a fused x * scale - offset rounds the offset alone, 2e9 by 64.
      const vf highest = splat(largest(high));
      vf total{};
      for (int64_t c = 0; c < h.length; c += kLanes) {
        const vf p = of_keys(exp2_of((load(row + c) - highest) * to_exponent), c, 0.f);
        total += p;
        if constexpr (per_word == 1) store(row + c, p);
        else store(reinterpret_cast<bf16*>(weights + i * (padded / 2)) + c, p);
      }
      // The rest of AMX's last words; elsewhere there is none.
      for (int64_t c = parts_of(h.length, kLanes) * kLanes; c < value_words * per_word; c += kLanes)
        store(reinterpret_cast<bf16*>(weights + i * (padded / 2)) + c, vf{});
      inverse[i] = 1.f / sum(total);
    }
    const uint32_t* left_side = per_word == 1 ? reinterpret_cast<const uint32_t*>(scores) : weights;
    sums_of(count, left_side, padded / per_word, values, padded_dim, kTileColumns, padded_dim,
            value_words, context, padded_dim);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < h.head_dim; d += kLanes)
        store_some(h.y + (s0 + i) * h.y_stride + d, load(context + i * padded_dim + d) * inverse[i],
                   h.head_dim - d);
  }
}

template <class Dot, class T>
void attention_as(const bertron::Attention& p, bertron::Threads threads) {
  const int64_t width = p.heads * p.head_dim;
  // Sequence by sequence: a thread's share is mostly of rows that it has computed.
  parallel(threads, p.heads * p.sequences, [&](int64_t begin, int64_t end) {
    Sums<Dot> sums_of;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t sequence = task / p.heads, head = task % p.heads;
      const int64_t start = p.cu_seqlens[sequence];
      const T* qkv = static_cast<const T*>(p.qkv) + start * 3 * width + head * p.head_dim;
      attend<Dot>(Head<T>{qkv, qkv + width, qkv + 2 * width,
                          static_cast<T*>(p.y) + start * width + head * p.head_dim,
                          p.cu_seqlens[sequence + 1] - start, 3 * width, p.head_dim, width},
                  p.scale, sums_of);
    }
  });
}

}  // namespace
