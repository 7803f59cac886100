// What one instruction set offers: the table that ops.cpp chooses from at load.
//
// Plain pointers and sizes; no PyTorch here. Shapes: T packed tokens, B sequences, H heads,
// D head_dim, E hidden size, K inputs and N outputs of a matrix product.
#pragma once

#include <cstdint>

namespace bertron {

// How activations are stored.
enum class Activation { f32, bf16 };

// What a packed weight is multiplied in.
enum class Product { f32, bf16, int8 };

constexpr int64_t kPanel = 64;  // output columns that stand together in a packed weight

// 32-bit words that one output column takes in a panel. int8 has one more: the column's sum, which
// takes back the offset of unsigned activations.
constexpr int64_t values_per_word(Product product) {
  return product == Product::f32 ? 1 : product == Product::bf16 ? 2 : 4;
}
constexpr int64_t words(Product product, int64_t k) {
  const int64_t per_word = values_per_word(product);
  return (k + per_word - 1) / per_word + (product == Product::int8 ? 1 : 0);
}
// Inputs of an int8 product: 255 * -128 times as many stays within 32 bits.
constexpr int64_t kMaxInt8Inputs = 65000;
constexpr int64_t panels(int64_t n) { return (n + kPanel - 1) / kPanel; }

// y = epilogue(x W^T + bias) over packed tokens.
struct Linear {
  const void* x;             // [T, K], `input`
  const void* weight;        // packed, [panels(N)][words][kPanel] words
  const float* scale;        // [N], int8 only: real weight = scale * stored weight
  const float* input_scale;  // [K] or null, int8 only: x is multiplied by it before it is quantised
  const void* bias;          // [N], `output`
  void* y;                   // [T, N], `output`
  int64_t tokens, k, n;
  Activation input, output;
  Product product;
  bool gelu;  // exact erf GELU
  // With a residual: y = layer_norm(x W^T + bias + residual), all of it `output`.
  const void* residual;     // [T, N] or null
  const void* norm_weight;  // [N]
  const void* norm_bias;    // [N]
  float eps;
};

struct Attention {
  const void* qkv;  // [T, 3, H, D]
  void* y;          // [T, H, D]
  const int32_t* cu_seqlens;  // [B + 1]
  int64_t sequences, heads, head_dim;
  float scale;
  Activation activation;
};

struct AddLayerNorm {
  const void* x;         // [T, E]
  const void* residual;  // [T, E] or null
  const void* bias;      // [E] or null
  const void* weight;    // [E]
  const void* norm_bias; // [E]
  void* y;               // [T, E]
  int64_t tokens, hidden;
  float eps;
  Activation input;       // of x
  Activation activation;  // of all others
};

struct Embedding {
  const int64_t* rows[3];  // [T] each: word, position, token type; the last may be null
  const void* tables[3];
  const void* weight;
  const void* bias;
  void* y;  // [T, E]
  int64_t tokens, hidden;
  float eps;
  Activation activation;
};

enum class Pooling { mean, max, mean_max, cls, last };

struct Pool {
  const void* x;              // [T, E]
  const int32_t* cu_seqlens;  // [B + 1]
  float* y;                   // [B, E], or [B, 2E] for mean_max
  int64_t sequences, hidden;
  Pooling mode;
  bool normalize;
  Activation activation;
};

// A part of an op: [begin, end) of what can be computed apart.
using Body = void (*)(int64_t begin, int64_t end, void* context);

// How many may share an op.
struct Threads {
  int64_t count;
};

struct Kernels {
  const char* name;
  // `weight` [N, K] row by row, of the product's type.
  void (*pack)(const void* weight, int64_t n, int64_t k, Product product, void* packed);
  void (*linear)(const Linear&, Threads);
  void (*attention)(const Attention&, Threads);
  void (*bias_gelu)(const void* x, const void* bias, void* y, int64_t tokens, int64_t n, Activation,
                    Threads);
  void (*add_layer_norm)(const AddLayerNorm&, Threads);
  void (*embedding)(const Embedding&, Threads);
  void (*pool)(const Pool&, Threads);
};

extern const Kernels kernels_avx2;         // AVX2 and FMA
extern const Kernels kernels_avx512_vnni;  // AVX-512 F, BW, DQ, VL and VNNI
extern const Kernels kernels_avx512_bf16;  // the same and BF16
extern const Kernels kernels_amx;          // the same and AMX with BF16 and INT8

}  // namespace bertron
