// Row-wise ops: GELU, add + layer norm, embedding + layer norm, pooling.
#pragma once

#include "gemm.h"

namespace {

template <class T>
void bias_gelu_as(const T* x, const T* bias, T* y, int64_t tokens, int64_t n,
                  bertron::Threads threads) {
  parallel(threads, tokens, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t c = 0; c < n; c += kLanes) {
        const int64_t left = n - c;
        vf v = load_some(x + row * n + c, left);
        if (bias) v += load_some(bias + c, left);
        store_some(y + row * n + c, gelu_of(v), left);
      }
  });
}

template <class In, class T>
void add_layer_norm_as(const bertron::AddLayerNorm& p, bertron::Threads threads) {
  const In* x = static_cast<const In*>(p.x);
  const T *residual = static_cast<const T*>(p.residual), *bias = static_cast<const T*>(p.bias);
  parallel(threads, p.tokens, [&](int64_t begin, int64_t end) {
    float* total = scratch<float>(1, p.hidden);
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t c = 0; c < p.hidden; c += kLanes) {
        const int64_t left = p.hidden - c;
        vf v = load_some(x + row * p.hidden + c, left);
        if (residual) v += load_some(residual + row * p.hidden + c, left);
        if (bias) v += load_some(bias + c, left);
        store_some(total + c, v, left);
      }
      layer_norm_row(total, p.hidden, static_cast<const T*>(p.weight),
                     static_cast<const T*>(p.norm_bias), p.eps,
                     static_cast<T*>(p.y) + row * p.hidden);
    }
  });
}

template <class T>
void embedding_as(const bertron::Embedding& p, bertron::Threads threads) {
  parallel(threads, p.tokens, [&](int64_t begin, int64_t end) {
    float* total = scratch<float>(1, p.hidden);
    for (int64_t row = begin; row < end; ++row) {
      const T* word = static_cast<const T*>(p.tables[0]) + p.rows[0][row] * p.hidden;
      const T* position = static_cast<const T*>(p.tables[1]) + p.rows[1][row] * p.hidden;
      const T* type = p.tables[2] == nullptr
                          ? nullptr
                          : static_cast<const T*>(p.tables[2]) +
                                (p.rows[2] ? p.rows[2][row] * p.hidden : 0);
      for (int64_t c = 0; c < p.hidden; c += kLanes) {
        const int64_t left = p.hidden - c;
        vf v = load_some(word + c, left) + load_some(position + c, left);
        if (type) v += load_some(type + c, left);
        store_some(total + c, v, left);
      }
      layer_norm_row(total, p.hidden, static_cast<const T*>(p.weight),
                     static_cast<const T*>(p.bias), p.eps, static_cast<T*>(p.y) + row * p.hidden);
    }
  });
}

constexpr float kMinNorm = 1e-12f;  // torch.nn.functional.normalize's
constexpr int64_t kSumTokens = 32;  // sums of so many, then of those: a text of 512 keeps its digits

template <class T>
void pool_text(const bertron::Pool& p, const T* x, int64_t length, float* y) {
  using bertron::Pooling;
  const int64_t hidden = p.hidden;
  const bool wants_mean = p.mode == Pooling::mean || p.mode == Pooling::mean_max;
  const bool wants_max = p.mode == Pooling::max || p.mode == Pooling::mean_max;
  const T* single = p.mode == Pooling::cls ? x : x + (length - 1) * hidden;
  float* max_y = p.mode == Pooling::mean_max ? y + hidden : y;
  for (int64_t c = 0; c < hidden; c += kLanes) {
    const int64_t left = hidden - c;
    if (!wants_mean && !wants_max) {
      store_some(y + c, load_some(single + c, left), left);
      continue;
    }
    vf total{}, high = load_some(x + c, left);
    for (int64_t begin = 0; begin < length; begin += kSumTokens) {
      vf part{};
      for (int64_t s = begin; s < std::min(begin + kSumTokens, length); ++s) {
        const vf v = load_some(x + s * hidden + c, left);
        part += v;
        high = (v > high) | (v != v) ? v : high;  // a NaN wins, and stays
      }
      total += part;
    }
    if (wants_mean) store_some(y + c, total / float(length), left);
    if (wants_max) store_some(max_y + c, high, left);
  }
}

void normalize_row(float* y, int64_t width) {
  vf squares{};
  for (int64_t c = 0; c < width; c += kLanes) {
    const vf v = load_some(y + c, width - c);
    squares += v * v;
  }
  const float factor = 1.f / std::max(std::sqrt(sum(squares)), kMinNorm);
  for (int64_t c = 0; c < width; c += kLanes)
    store_some(y + c, load_some(y + c, width - c) * factor, width - c);
}

template <class T>
void pool_as(const bertron::Pool& p, bertron::Threads threads) {
  const int64_t width = p.hidden * (p.mode == bertron::Pooling::mean_max ? 2 : 1);
  parallel(threads, p.sequences, [&](int64_t begin, int64_t end) {
    for (int64_t sequence = begin; sequence < end; ++sequence) {
      const int64_t start = p.cu_seqlens[sequence], length = p.cu_seqlens[sequence + 1] - start;
      float* y = p.y + sequence * width;
      if (length == 0) {
        std::fill_n(y, width, 0.f);
        continue;
      }
      pool_text(p, static_cast<const T*>(p.x) + start * p.hidden, length, y);
      if (p.normalize) normalize_row(y, width);
    }
  });
}

}  // namespace
