// The ops of the namespace `bertron` on the CPU: arguments checked, the best instruction set chosen
// once, the work handed to its kernels. No Python here; PyTorch through its stable interface alone,
// so that one build fits any PyTorch from 2.10 on. The schemas are in ../schemas.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using namespace bertron;

// Linux gives AMX's registers, 8 KiB a thread, only to a process that asks for them.
bool may_use_amx() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, of asm/prctl.h
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

const Kernels& kernels() {
  static const Kernels* chosen = [] {
    // An override for tests, which run every table that the machine can.
    const char* variable = std::getenv("BERTRON_CPU_KERNELS");
    const std::string wanted = variable ? variable : "";
    const auto allows = [&](const Kernels& k) { return wanted.empty() || wanted == k.name; };
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (bf16 && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
        __builtin_cpu_supports("amx-int8") && allows(kernels_amx) && may_use_amx())
      return &kernels_amx;
    if (bf16 && allows(kernels_avx512_bf16)) return &kernels_avx512_bf16;
    if (avx512 && allows(kernels_avx512_vnni)) return &kernels_avx512_vnni;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && allows(kernels_avx2))
      return &kernels_avx2;
    return static_cast<const Kernels*>(nullptr);
  }();
  STD_TORCH_CHECK(chosen != nullptr, "this CPU has neither AVX2 nor AVX-512");
  return *chosen;
}

Threads threads() { return {torch::stable::get_num_threads()}; }

std::string name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "torch.float32";
    case ScalarType::BFloat16: return "torch.bfloat16";
    case ScalarType::Half: return "torch.float16";
    case ScalarType::Double: return "torch.float64";
    case ScalarType::Char: return "torch.int8";
    case ScalarType::Int: return "torch.int32";
    case ScalarType::Long: return "torch.int64";
    default: return torch::headeronly::toString(type);
  }
}

template <class Values>
std::string list(const Values& values) {
  std::string text;
  for (const int64_t value : values) text += (text.empty() ? "" : ", ") + std::to_string(value);
  return "[" + text + "]";
}

Activation activation(const char* name, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, name, " has dtype ",
                  name_of(type), ", expected torch.float32 or torch.bfloat16 on the CPU");
  return type == ScalarType::Float ? Activation::f32 : Activation::bf16;
}

void check_dense(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.is_cpu(), name, " is on another device, expected the CPU");
  STD_TORCH_CHECK(t.is_contiguous(), name, " has strides ", list(t.strides()), " for shape ",
                  list(t.sizes()), ", expected a contiguous tensor; call .contiguous() on it");
}

// `layout` names the dimensions: [T, K].
void check_rank(const char* name, const Tensor& t, const std::string& layout) {
  STD_TORCH_CHECK(t.dim() == std::count(layout.begin(), layout.end(), ',') + 1, name, " has shape ",
                  list(t.sizes()), ", expected ", layout);
  check_dense(name, t);
}

void check_type(const char* name, const Tensor& t, ScalarType expected) {
  STD_TORCH_CHECK(t.scalar_type() == expected, name, " has dtype ", name_of(t.scalar_type()),
                  ", expected ", name_of(expected));
}

void check_shape(const char* name, const Tensor& t, const std::vector<int64_t>& expected) {
  STD_TORCH_CHECK(list(t.sizes()) == list(expected), name, " has shape ", list(t.sizes()),
                  ", expected ", list(expected));
}

void check(const char* name, const Tensor& t, const std::vector<int64_t>& shape, ScalarType type) {
  check_shape(name, t, shape);
  check_type(name, t, type);
  check_dense(name, t);
}

Tensor empty(std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::empty({shape.begin(), shape.size()}, type);
}

const void* pointer(const std::optional<Tensor>& t) { return t ? t->const_data_ptr() : nullptr; }

// How a weight is multiplied, packed or not, from its dtype.
Product product_of(const Tensor& weight) {
  const ScalarType type = weight.scalar_type();
  if (type == ScalarType::Float) return Product::f32;
  if (type == ScalarType::BFloat16) return Product::bf16;
  STD_TORCH_CHECK(type == ScalarType::Char, "weight has dtype ", name_of(type),
                  ", expected torch.float32, torch.bfloat16 or torch.int8");
  return Product::int8;
}

void check_floats(const char* name, const std::optional<Tensor>& t, int64_t size) {
  if (t) check(name, *t, {size}, ScalarType::Float);
}

// [N, K] float32, bfloat16, or int8 with `scale` [N] -> [panels, words, 64, values a word].
Tensor pack_weight(const Tensor weight, const std::optional<Tensor> scale,
                   const std::optional<Tensor> input_scale) {
  check_rank("weight", weight, "[N, K]");
  const ScalarType type = weight.scalar_type();
  const Product product = product_of(weight);
  STD_TORCH_CHECK((type == ScalarType::Char) == scale.has_value(),
                  "weight_scale comes with an int8 weight, and with no other");
  const int64_t n = weight.size(0), k = weight.size(1);
  STD_TORCH_CHECK(scale || !input_scale, "input_scale comes with an int8 weight, and with no other");
  check_floats("weight_scale", scale, n);
  check_floats("input_scale", input_scale, k);
  Tensor packed = empty({panels(n), words(product, k), kPanel, values_per_word(product)}, type);
  kernels().pack(weight.const_data_ptr(), n, k, product, packed.mutable_data_ptr());
  return packed;
}

// The output has the dtype of the bias.
Linear linear_arguments(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale,
                        const std::optional<Tensor>& input_scale, const Tensor& bias) {
  check_rank("x", x, "[T, K]");
  check_rank("bias", bias, "[N]");
  const int64_t n = bias.size(0), k = x.size(1);
  STD_TORCH_CHECK(weight.dim() == 4, "weight has shape ", list(weight.sizes()),
                  ", expected 4 dimensions: pack it with pack_weight");
  check_dense("weight", weight);
  const Product product = product_of(weight);
  const std::vector<int64_t> shape{panels(n), words(product, k), kPanel, values_per_word(product)};
  STD_TORCH_CHECK(list(weight.sizes()) == list(shape), "weight has shape ", list(weight.sizes()),
                  ", expected ", list(shape), ", packed from [", n, ", ", k, "]");
  if (product == Product::int8) {
    STD_TORCH_CHECK(scale.has_value(), "weight is int8, weight_scale is missing");
    STD_TORCH_CHECK(k <= kMaxInt8Inputs, "x has ", k, " columns, an int8 product takes at most ",
                    kMaxInt8Inputs);
    check_floats("weight_scale", scale, n);
    check_floats("input_scale", input_scale, k);
  }
  Linear p{};
  p.x = x.const_data_ptr();
  p.weight = weight.const_data_ptr();
  if (product == Product::int8) {
    p.scale = static_cast<const float*>(pointer(scale));
    p.input_scale = static_cast<const float*>(pointer(input_scale));
  }
  p.bias = bias.const_data_ptr();
  p.tokens = x.size(0);
  p.k = k;
  p.n = n;
  p.input = activation("x", x);
  p.output = activation("bias", bias);
  p.product = product;
  return p;
}

Tensor run_linear(Linear p, const Tensor& bias, bool gelu) {
  Tensor y = empty({p.tokens, p.n}, bias.scalar_type());
  p.y = y.mutable_data_ptr();
  p.gelu = gelu;
  kernels().linear(p, threads());
  return y;
}

Tensor linear(const Tensor x, const Tensor weight, const std::optional<Tensor> weight_scale,
              const std::optional<Tensor> input_scale, const Tensor bias) {
  return run_linear(linear_arguments(x, weight, weight_scale, input_scale, bias), bias, false);
}

Tensor linear_gelu(const Tensor x, const Tensor weight, const std::optional<Tensor> weight_scale,
                   const std::optional<Tensor> input_scale, const Tensor bias) {
  return run_linear(linear_arguments(x, weight, weight_scale, input_scale, bias), bias, true);
}

Tensor linear_add_layer_norm(const Tensor x, const Tensor weight,
                             const std::optional<Tensor> weight_scale,
                             const std::optional<Tensor> input_scale, const Tensor bias,
                             const Tensor residual, const Tensor norm_weight,
                             const Tensor norm_bias, double eps) {
  Linear p = linear_arguments(x, weight, weight_scale, input_scale, bias);
  const ScalarType type = bias.scalar_type();
  check("residual", residual, {p.tokens, p.n}, type);
  check("norm_weight", norm_weight, {p.n}, type);
  check("norm_bias", norm_bias, {p.n}, type);
  Tensor y = empty({p.tokens, p.n}, type);
  p.y = y.mutable_data_ptr();
  p.residual = residual.const_data_ptr();
  p.norm_weight = norm_weight.const_data_ptr();
  p.norm_bias = norm_bias.const_data_ptr();
  p.eps = float(eps);
  kernels().linear(p, threads());
  return y;
}

// B, after checking that the bounds rise from 0 to T: they are used as addresses.
int64_t check_bounds(const Tensor& cu_seqlens, int64_t tokens, int64_t max_seqlen) {
  check_type("cu_seqlens", cu_seqlens, ScalarType::Int);
  check_rank("cu_seqlens", cu_seqlens, "[B + 1]");
  STD_TORCH_CHECK(cu_seqlens.size(0) >= 1,
                  "cu_seqlens has shape [0], expected [B + 1] with a leading 0");
  const int32_t* bounds = static_cast<const int32_t*>(cu_seqlens.const_data_ptr());
  const int64_t sequences = cu_seqlens.size(0) - 1;
  STD_TORCH_CHECK(bounds[0] == 0 && bounds[sequences] == tokens, "cu_seqlens goes from ", bounds[0],
                  " to ", bounds[sequences], ", expected 0 to ", tokens);
  for (int64_t i = 0; i < sequences; ++i) {
    STD_TORCH_CHECK(bounds[i] <= bounds[i + 1], "cu_seqlens falls from ", bounds[i], " to ",
                    bounds[i + 1], " at ", i + 1, ", expected it to rise");
    STD_TORCH_CHECK(bounds[i + 1] - bounds[i] <= max_seqlen, "cu_seqlens has a sequence of ",
                    bounds[i + 1] - bounds[i], " tokens, expected at most max_seqlen ", max_seqlen);
  }
  return sequences;
}

Tensor varlen_attention(const Tensor qkv, const Tensor cu_seqlens, int64_t max_seqlen,
                        double softmax_scale) {
  check_rank("qkv", qkv, "[T, 3, H, D]");
  check_shape("qkv", qkv, {qkv.size(0), 3, qkv.size(2), qkv.size(3)});
  STD_TORCH_CHECK(max_seqlen >= 0, "max_seqlen is ", max_seqlen, ", expected at least 0");
  // The largest score is found before it is scaled.
  STD_TORCH_CHECK(softmax_scale >= 0 && std::isfinite(softmax_scale), "softmax_scale is ",
                  softmax_scale, ", expected a finite number of at least 0");
  Attention p{};
  p.sequences = check_bounds(cu_seqlens, qkv.size(0), max_seqlen);
  p.heads = qkv.size(2);
  p.head_dim = qkv.size(3);
  p.activation = activation("qkv", qkv);
  Tensor y = empty({qkv.size(0), p.heads, p.head_dim}, qkv.scalar_type());
  p.qkv = qkv.const_data_ptr();
  p.y = y.mutable_data_ptr();
  p.cu_seqlens = static_cast<const int32_t*>(cu_seqlens.const_data_ptr());
  p.scale = float(softmax_scale);
  kernels().attention(p, threads());
  return y;
}

Tensor bias_gelu(const Tensor x, const std::optional<Tensor> bias) {
  check_rank("x", x, "[T, I]");
  if (bias) check("bias", *bias, {x.size(1)}, x.scalar_type());
  Tensor y = empty({x.size(0), x.size(1)}, x.scalar_type());
  kernels().bias_gelu(x.const_data_ptr(), pointer(bias), y.mutable_data_ptr(), x.size(0), x.size(1),
                      activation("x", x), threads());
  return y;
}

Tensor add_layer_norm(const Tensor x, const std::optional<Tensor> residual,
                      const std::optional<Tensor> bias, const Tensor weight, const Tensor norm_bias,
                      double eps) {
  check_rank("x", x, "[T, E]");
  const int64_t hidden = x.size(1);
  const ScalarType type = weight.scalar_type();
  check("weight", weight, {hidden}, type);
  if (residual) check("residual", *residual, {x.size(0), hidden}, type);
  if (bias) check("bias", *bias, {hidden}, type);
  check("norm_bias", norm_bias, {hidden}, type);
  Tensor y = empty({x.size(0), hidden}, type);
  kernels().add_layer_norm({x.const_data_ptr(), pointer(residual), pointer(bias),
                            weight.const_data_ptr(), norm_bias.const_data_ptr(),
                            y.mutable_data_ptr(), x.size(0), hidden, float(eps),
                            activation("x", x), activation("weight", weight)},
                           threads());
  return y;
}

// The ids as int64, every one inside its table: they are used as addresses.
const int64_t* rows_of(const char* name, const Tensor& ids, int64_t tokens, const Tensor& table,
                       std::vector<int64_t>* widened) {
  const ScalarType type = ids.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Int || type == ScalarType::Long, name, " has dtype ",
                  name_of(type), ", expected torch.int32 or torch.int64");
  check(name, ids, {tokens}, type);
  const int64_t* rows;
  if (type == ScalarType::Long) {
    rows = static_cast<const int64_t*>(ids.const_data_ptr());
  } else {
    const int32_t* narrow = static_cast<const int32_t*>(ids.const_data_ptr());
    widened->assign(narrow, narrow + tokens);
    rows = widened->data();
  }
  const uint64_t size = uint64_t(table.size(0));
  for (int64_t i = 0; i < tokens; ++i)
    STD_TORCH_CHECK(uint64_t(rows[i]) < size, name, " has id ", rows[i], ", expected 0 to ",
                    table.size(0) - 1);
  return rows;
}

Tensor embedding_layer_norm(const Tensor input_ids, const Tensor position_ids,
                            const std::optional<Tensor> token_type_ids,
                            const Tensor word_embeddings, const Tensor position_embeddings,
                            const std::optional<Tensor> token_type_embeddings, const Tensor weight,
                            const Tensor bias, double eps) {
  check_rank("word_embeddings", word_embeddings, "[vocabulary, E]");
  check_rank("input_ids", input_ids, "[T]");
  const int64_t tokens = input_ids.size(0), hidden = word_embeddings.size(1);
  const ScalarType type = word_embeddings.scalar_type();
  const auto check_table = [&](const char* name, const Tensor& table) {
    check_rank(name, table, "[rows, E]");
    check(name, table, {table.size(0), hidden}, type);
  };
  check_table("position_embeddings", position_embeddings);
  check("weight", weight, {hidden}, type);
  check("bias", bias, {hidden}, type);
  STD_TORCH_CHECK(!token_type_ids || token_type_embeddings,
                  "token_type_ids came without token_type_embeddings, expected both or none");
  std::vector<int64_t> widened[3];
  Embedding p{};
  p.rows[0] = rows_of("input_ids", input_ids, tokens, word_embeddings, &widened[0]);
  p.rows[1] = rows_of("position_ids", position_ids, tokens, position_embeddings, &widened[1]);
  p.tables[0] = word_embeddings.const_data_ptr();
  p.tables[1] = position_embeddings.const_data_ptr();
  if (token_type_embeddings) {
    check_table("token_type_embeddings", *token_type_embeddings);
    STD_TORCH_CHECK(token_type_embeddings->size(0) > 0,
                    "token_type_embeddings has no rows, expected 1 or more");
    p.tables[2] = token_type_embeddings->const_data_ptr();
    if (token_type_ids)
      p.rows[2] = rows_of("token_type_ids", *token_type_ids, tokens, *token_type_embeddings,
                          &widened[2]);
  }
  Tensor y = empty({tokens, hidden}, type);
  p.weight = weight.const_data_ptr();
  p.bias = bias.const_data_ptr();
  p.y = y.mutable_data_ptr();
  p.tokens = tokens;
  p.hidden = hidden;
  p.eps = float(eps);
  p.activation = activation("word_embeddings", word_embeddings);
  kernels().embedding(p, threads());
  return y;
}

Tensor pool(const Tensor hidden_states, const Tensor cu_seqlens, const std::string mode,
            bool normalize) {
  check_rank("hidden_states", hidden_states, "[T, E]");
  Pool p{};
  if (mode == "mean") p.mode = Pooling::mean;
  else if (mode == "max") p.mode = Pooling::max;
  else if (mode == "mean-max") p.mode = Pooling::mean_max;
  else if (mode == "cls") p.mode = Pooling::cls;
  else if (mode == "last") p.mode = Pooling::last;
  else STD_TORCH_CHECK(false, "mode is '", mode, "', expected one of cls, last, max, mean, mean-max");
  const int64_t tokens = hidden_states.size(0);
  p.sequences = check_bounds(cu_seqlens, tokens, tokens);
  p.hidden = hidden_states.size(1);
  Tensor y = empty({p.sequences, p.hidden * (p.mode == Pooling::mean_max ? 2 : 1)}, ScalarType::Float);
  p.x = hidden_states.const_data_ptr();
  p.cu_seqlens = static_cast<const int32_t*>(cu_seqlens.const_data_ptr());
  p.y = static_cast<float*>(y.mutable_data_ptr());
  p.normalize = normalize;
  p.activation = activation("hidden_states", hidden_states);
  kernels().pool(p, threads());
  return y;
}

}  // namespace

// For Python: which table was chosen and what it multiplies natively; null where there is none.
extern "C" const char* bertron_cpu_kernels() {
  try {
    return kernels().name;
  } catch (const std::exception&) {
    return nullptr;
  }
}

STABLE_TORCH_LIBRARY_IMPL(bertron, CPU, m) {
  m.impl("pack_weight", TORCH_BOX(&pack_weight));
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_gelu", TORCH_BOX(&linear_gelu));
  m.impl("linear_add_layer_norm", TORCH_BOX(&linear_add_layer_norm));
  m.impl("varlen_attention", TORCH_BOX(&varlen_attention));
  m.impl("bias_gelu", TORCH_BOX(&bias_gelu));
  m.impl("add_layer_norm", TORCH_BOX(&add_layer_norm));
  m.impl("embedding_layer_norm", TORCH_BOX(&embedding_layer_norm));
  m.impl("pool", TORCH_BOX(&pool));
}
