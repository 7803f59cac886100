// Attention inside each sequence, one (head, sequence) at a time, six query rows against all keys.
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

// Keys to panels of words, as a packed weight.
template <class Dot, class T>
void pack_keys(const Head<T>& h, int64_t words, uint32_t* out) {
  constexpr int64_t per_word = bertron::values_per_word(Dot::product);
  const int64_t panels = bertron::panels(h.length);
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t count = std::min(kPanel, h.length - panel * kPanel);
    for (int64_t s = 0; s < count; ++s) {
      uint32_t* place = out + panel * words * kPanel + column_place(s, words);
      const T* key = h.key + (panel * kPanel + s) * h.stride;
      if (sizeof(T) * per_word == 4 && h.head_dim % per_word == 0) {
        for (int64_t w = 0; w < words; ++w)
          std::memcpy(place + w * kTileColumns, key + w * per_word, 4);
      } else {
        for (int64_t w = 0; w < words; ++w) place[w * kTileColumns] = 0;
        for (int64_t d = 0; d < h.head_dim; ++d) {
          const vf value = splat(widen(key[d]));
          char* word = reinterpret_cast<char*>(place + d / per_word * kTileColumns);
          if constexpr (per_word == 1) std::memcpy(word, &value, 4);
          else reinterpret_cast<bf16*>(word)[d % 2] = to_bf16(value)[0];
        }
      }
    }
    // Scores of keys that do not exist are never read.
    for (int64_t s = count; s < (count + kLanes - 1) / kLanes * kLanes; ++s)
      for (int64_t w = 0; w < words; ++w)
        out[panel * words * kPanel + column_place(s, words) + w * kTileColumns] = 0;
  }
}

// Values to words along the tokens: [words of S][D rounded up], for the second product.
template <class Dot, class T>
void pack_values(const Head<T>& h, int64_t words, int64_t padded_dim, uint32_t* out) {
  constexpr int64_t per_word = bertron::values_per_word(Dot::product);
  for (int64_t w = 0; w < words; ++w) {
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
void attend(const Head<T>& h, float scale) {
  constexpr int64_t per_word = bertron::values_per_word(Dot::product);
  const int64_t key_words = (h.head_dim + per_word - 1) / per_word;
  const int64_t value_words = (h.length + per_word - 1) / per_word;
  const int64_t padded_dim = (h.head_dim + kLanes - 1) / kLanes * kLanes;
  const int64_t panels = bertron::panels(h.length), padded = panels * kPanel;
  uint32_t* keys = scratch<uint32_t>(0, padded * key_words);
  uint32_t* values = scratch<uint32_t>(1, value_words * padded_dim);
  float* scores = scratch<float>(2, kTileRows * (padded + padded_dim));
  float* context = scores + kTileRows * padded;  // [6][padded_dim]
  uint32_t* rows = scratch<uint32_t>(3, kTileRows * (key_words + padded + kLanes));
  uint32_t* weights = rows + kTileRows * (key_words + kLanes);  // [6][value_words]
  pack_keys<Dot>(h, key_words, keys);
  pack_values<Dot>(h, value_words, padded_dim, values);

  const bool in_place = sizeof(T) * per_word == 4 && h.head_dim % per_word == 0 &&
                        h.stride % per_word == 0;
  const float to_exponent = scale * kLog2E;
  for (int64_t s0 = 0; s0 < h.length; s0 += kTileRows) {
    const int64_t count = std::min<int64_t>(kTileRows, h.length - s0);
    const word_u* query = reinterpret_cast<const word_u*>(h.query + s0 * h.stride);
    int64_t query_stride = h.stride / per_word;
    if (!in_place) {
      query_stride = key_words + kLanes;
      for (int64_t i = 0; i < count; ++i) {
        const T* row = h.query + (s0 + i) * h.stride;
        row_to<typename Dot::Row>(row, h.head_dim, rows + i * query_stride);
      }
      query = rows;
    }
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t left = h.length - panel * kPanel;
      const int64_t columns = (std::min(kPanel, left) + kLanes - 1) / kLanes * kLanes;
      tile_columns<Dot>(count, query, query_stride, keys + panel * key_words * kPanel, kTileColumns,
                        key_words * kTileColumns, columns, key_words, scores + panel * kPanel,
                        padded);
    }
    float inverse[kTileRows];
    for (int64_t i = 0; i < count; ++i) {
      float* row = scores + i * padded;
      for (int64_t c = h.length; c % kLanes; ++c) row[c] = -INFINITY;
      vf high = load(row);
      for (int64_t c = kLanes; c < h.length; c += kLanes) high = vmax(high, load(row + c));
      const vf offset = splat(largest(high) * to_exponent);
      vf total{};
      for (int64_t c = 0; c < h.length; c += kLanes) {
        vf p = exp2_of(load(row + c) * to_exponent - offset);
        // exp2_of holds at 2^-126; what was masked must be nothing at all.
        if (c + kLanes > h.length) p = load(row + c) == -INFINITY ? vf{} : p;
        total += p;
        if constexpr (per_word == 1) store(row + c, p);
        else store(reinterpret_cast<bf16*>(weights + i * (padded / 2)) + c, p);
      }
      inverse[i] = 1.f / sum(total);
    }
    const uint32_t* left_side = per_word == 1 ? reinterpret_cast<const uint32_t*>(scores) : weights;
    tile_columns<Dot>(count, left_side, padded / per_word, values, padded_dim, kTileColumns,
                      padded_dim, value_words, context, padded_dim);
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
    for (int64_t task = begin; task < end; ++task) {
      const int64_t sequence = task / p.heads, head = task % p.heads;
      const int64_t start = p.cu_seqlens[sequence];
      const T* qkv = static_cast<const T*>(p.qkv) + start * 3 * width + head * p.head_dim;
      attend<Dot>(Head<T>{qkv, qkv + width, qkv + 2 * width,
                          static_cast<T*>(p.y) + start * width + head * p.head_dim,
                          p.cu_seqlens[sequence + 1] - start, 3 * width, p.head_dim, width},
                  p.scale);
    }
  });
}

}  // namespace
