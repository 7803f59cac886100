// Matrix products over packed weights, and the row-wise work that follows them.
//
// A packed weight is cut into panels of 64 output columns; a panel holds, for each 32-bit word of
// the reduction (1 float, 2 bf16 or 4 int8), the 64 columns' words side by side. One word of an
// activation row is broadcast against it: 1 instruction for 16 columns and 1, 2 or 4 terms with
// AVX-512. Inside a panel the columns of one tile stand together: all 64, or 16 after 16 with AVX2,
// whose words 256 bytes apart would meet in a quarter of the cache.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <new>
#include <type_traits>

#include "amx.h"
#include "kernels.h"
#include "simd.h"
#include "team.h"

namespace {

using bertron::kPanel;
using bertron::Product;

// Rows x columns of one register tile: of 32 registers, 6 x 4 accumulate; of AVX2's 16, 6 x 2.
constexpr int64_t kTileRows = 6;
#ifdef __AVX512F__
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = 2;
#endif
constexpr int64_t kTileColumns = kTileVectors * kLanes;
// Whether AMX multiplies it.
constexpr bool has_amx([[maybe_unused]] Product product) {
#ifdef __AMX_TILE__
  return product != Product::f32;
#else
  return false;
#endif
}
// Rows that one thread carries through all panels: their inputs and float outputs stay in L2. AMX
// computes with its weights for as long as they take from L3 at about 120 rows; MiniLM's forward was
// 1.03 to 1.08 times as quick with 256 as with 96.
constexpr int64_t chunk_rows(Product product) { return has_amx(product) ? 256 : 96; }
// Up to so many rows for each thread they share the columns, so that each reads a part of the weights.
// With AMX, which waits for weights for longer, MiniLM's took 0.8 to 0.95 of the time at 32 to 64.
constexpr int64_t rows_for_all(Product product) { return has_amx(product) ? 64 : 16; }
// Up to so many rows a product computes too little with its weights to hide their way from memory.
// They go column by column then, a tile's weights staying in L1 for all rows while the next tile's
// are fetched. With more there is nothing to hide (weights from memory and from L3 took the same
// time from 50 rows on): a tile of rows stays in L1 and goes through a panel of weights in L2.
constexpr int64_t kShortRows = 48;
// Up to so many tiles of rows wait for weights for longer than they multiply with them. They take at
// most 16 KB of a tile's weights at a time: what is fetched a whole column ahead, 98 KB and more of
// float32, is pushed out of L1 before it is used. On a Zen 5 a forward of MiniLM with 8, 12 and 16
// tokens takes 0.75, 0.90 and 0.87 of the time in float32, 0.81, 0.93 and 0.96 in bfloat16, 0.90, 0.98
// and 0.99 in int8 (quickest of 3 runs each); with AVX2, whose tiles are narrow, as long as before.
constexpr int64_t kFewTiles = 3, kChunkWords = 16384 / (kTileColumns * 4);
// Whether they are fetched into L1 alone. On AMD what L2 gives up goes to L3, and before a weight
// comes round again the others may have pushed it out of both: and with it what the server and the
// tokenizer run in between. Served on a Zen 5 with 32 MB of L3, one text in MiniLM's 43 MB of float32
// takes 0.91 to 0.95 of the time that it took otherwise (blocks of 60 calls in turns), in 22 MB of
// bfloat16 0.96, and in 11 MB of int8 as long; in process there is no difference. The caches of other
// makers' CPUs have not been tried.
const bool kIntoL1Alone = [] {
  __builtin_cpu_init();
  return __builtin_cpu_is("amd") != 0;
}();

// What goes row by row is shared in parts of so many rows.
constexpr int64_t kSharedRows = 32;

// A word of a caller's bf16 row, which may start at any bf16.
typedef uint32_t word_u __attribute__((aligned(2)));

BERTRON_INLINE vf splat_float(const word_u* word) {
  float value;
  std::memcpy(&value, word, 4);
  return splat(value);
}

struct DotF32 {
  static constexpr Product product = Product::f32;
  static constexpr int row_words = 1;  // of a row, for each word of a column
  static constexpr int64_t tile_rows = kTileRows;
  using Row = float;  // what a row's words are made of
  using Accumulator = vf;
  BERTRON_INLINE vf dot(vf total, const word_u* a, const uint32_t* b) {
    return total + splat_float(a) * load(reinterpret_cast<const float*>(b));
  }
};

struct DotBf16 {
  static constexpr Product product = Product::bf16;
  using Accumulator = vf;
#ifdef __AVX512BF16__
  static constexpr int row_words = 1;
  static constexpr int64_t tile_rows = has_amx(product) ? kAmxBlockRows : kTileRows;
  using Row = bf16;
  BERTRON_INLINE vf dot(vf total, const word_u* a, const uint32_t* b) {
    return reinterpret_cast<vf>(_mm512_dpbf16_ps(
        reinterpret_cast<__m512>(total), reinterpret_cast<__m512bh>(_mm512_set1_epi32(*a)),
        reinterpret_cast<__m512bh>(_mm512_loadu_si512(b))));
  }
#else
  // The weights are widened here, for all rows of a tile: half of float32's way from memory, and
  // its products. One row fewer than AVX2's registers hold, for the mask.
  static constexpr int row_words = 2;
  static constexpr int64_t tile_rows = 5;
  using Row = float;
  BERTRON_INLINE vf dot(vf total, const word_u* a, const uint32_t* b) {
    const vi pair = load(reinterpret_cast<const int32_t*>(b));
    total += splat_float(a) * reinterpret_cast<vf>(pair << 16);
    return total + splat_float(a + 1) * reinterpret_cast<vf>(pair & int32_t(0xffff0000));
  }
#endif
};

// Unsigned activations times signed weights: sums within 32 bits up to bertron::kMaxInt8Inputs, and
// the same ones on every CPU.
struct DotInt8 {
  static constexpr Product product = Product::int8;
  static constexpr int64_t tile_rows = has_amx(product) ? kAmxBlockRows : kTileRows;
  using Row = uint8_t;
  using Accumulator = vi;
#ifdef __AVX512VNNI__
  static constexpr int row_words = 1;
  BERTRON_INLINE vi dot(vi total, const word_u* a, const uint32_t* b) {
    return reinterpret_cast<vi>(_mm512_dpbusd_epi32(
        reinterpret_cast<__m512i>(total), _mm512_set1_epi32(*a), _mm512_loadu_si512(b)));
  }
#else
  // AVX2's product of bytes saturates at 16 bits; that of 16-bit values is exact. The weights are
  // widened here, for all rows of a tile; the rows' even and odd bytes once, by `widen_row`.
  static constexpr int row_words = 2;
  BERTRON_INLINE vi dot(vi total, const word_u* a, const uint32_t* b) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
    const __m256i odd = _mm256_srai_epi16(bytes, 8);
    return total + reinterpret_cast<vi>(_mm256_madd_epi16(_mm256_set1_epi32(a[0]), even)) +
           reinterpret_cast<vi>(_mm256_madd_epi16(_mm256_set1_epi32(a[1]), odd));
  }
#endif
};

// What a tile asks of memory while it computes, for the tiles that come after it.
struct NoPrefetch {
  static constexpr bool adds = false;
  template <int VECTORS>
  void step() {}
};

// LOCALITY is the instruction's: 3 for all caches, 0 for L1 alone. ADDS: to the sums of words before.
template <int LOCALITY, bool ADDS>
struct Prefetch {
  static constexpr bool adds = ADDS;
  const char* next;
  int64_t bytes;  // for each word of the reduction
  template <int VECTORS>
  void step() {
    for (int64_t line = 0; line < VECTORS * kLanes * 4; line += 64)
      __builtin_prefetch(next + line, 0, LOCALITY);
    next += bytes;
  }
};

// ROWS x VECTORS sums over `words` words, written as they are, or going on from what stands there:
// out[row * out_stride + column].
template <class Dot, int ROWS, int VECTORS, class Ahead>
void tile(const word_u* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, int64_t words,
          float* out, int64_t out_stride, Ahead ahead) {
  typename Dot::Accumulator total[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j)
      if constexpr (Ahead::adds)
        total[i][j] = reinterpret_cast<typename Dot::Accumulator>(
            load(out + i * out_stride + j * kLanes));
      else
        total[i][j] = typename Dot::Accumulator{};
#pragma GCC unroll 1
  for (int64_t word = 0; word < words; ++word) {
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < VECTORS; ++j)
        total[i][j] =
            Dot::dot(total[i][j], a + i * a_stride + word * Dot::row_words, b + j * kLanes);
    ahead.template step<VECTORS>();
    b += b_stride;
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j)
      store(out + i * out_stride + j * kLanes, reinterpret_cast<vf>(total[i][j]));
}

template <class Dot, int VECTORS, class Ahead>
void tile_rows(int64_t rows, const word_u* a, int64_t a_stride, const uint32_t* b,
               int64_t b_stride, int64_t words, float* out, int64_t out_stride, Ahead ahead) {
  using Tile =
      void (*)(const word_u*, int64_t, const uint32_t*, int64_t, int64_t, float*, int64_t, Ahead);
  static constexpr Tile tiles[kTileRows] = {
      tile<Dot, 1, VECTORS, Ahead>, tile<Dot, 2, VECTORS, Ahead>, tile<Dot, 3, VECTORS, Ahead>,
      tile<Dot, 4, VECTORS, Ahead>, tile<Dot, 5, VECTORS, Ahead>, tile<Dot, 6, VECTORS, Ahead>};
  tiles[rows - 1](a, a_stride, b, b_stride, words, out, out_stride, ahead);
}

// At most kTileRows rows; columns in steps of kTileColumns, then of one vector. `b_step` words lie
// from one tile's columns to the next one's.
template <class Dot, class Ahead = NoPrefetch>
void tile_columns(int64_t rows, const word_u* a, int64_t a_stride, const uint32_t* b,
                  int64_t b_stride, int64_t b_step, int64_t columns, int64_t words, float* out,
                  int64_t out_stride, Ahead ahead = {}) {
  int64_t c = 0;
  for (; c + kTileColumns <= columns; c += kTileColumns, b += b_step)
    tile_rows<Dot, kTileVectors>(rows, a, a_stride, b, b_stride, words, out + c, out_stride, ahead);
  for (; c < columns; c += kLanes, b += kLanes)
    tile_rows<Dot, 1>(rows, a, a_stride, b, b_stride, words, out + c, out_stride, ahead);
}

// The same for up to Dot::tile_rows rows: in AMX's tiles where there are some and they hold the words.
template <class Dot>
struct Sums {
  template <class Ahead = NoPrefetch>
  void operator()(int64_t rows, const word_u* a, int64_t a_stride, const uint32_t* b,
                  int64_t b_stride, int64_t b_step, int64_t columns, int64_t words, float* out,
                  int64_t out_stride, Ahead ahead = {}) {
#ifdef __AMX_TILE__
    if constexpr (has_amx(Dot::product)) {
      if (words % kAmxWords == 0)
        return amx_columns<Dot::product>(shape, rows, a, a_stride * 4, b, b_stride * 4, columns,
                                         words, out, out_stride * 4);
      for (; rows > kTileRows; rows -= kTileRows, a += kTileRows * a_stride,
                               out += kTileRows * out_stride)
        tile_columns<Dot>(kTileRows, a, a_stride, b, b_stride, b_step, columns, words, out,
                          out_stride);
    }
#endif
    tile_columns<Dot>(rows, a, a_stride, b, b_stride, b_step, columns, words, out, out_stride,
                      ahead);
  }
#ifdef __AMX_TILE__
  AmxShape shape;
#endif
};

// Where a column's words begin in a panel of `words`; from one to the next are kTileColumns.
constexpr int64_t column_place(int64_t column, int64_t words) {
  return column / kTileColumns * kTileColumns * words + column % kTileColumns;
}

// A row of activations as the words that a product multiplies.
struct QuantizedRow {
  float scale = 0;  // real value = scale * (stored - zero)
  int32_t zero = 0;
};

// To floats or bf16, an even number of them.
template <class Row, class T>
void row_to(const T* x, int64_t k, uint32_t* out) {
  Row* values = reinterpret_cast<Row*>(out);
  if (k % 2) values[k] = 0;
  for (int64_t c = 0; c < k; c += kLanes) store_some(values + c, load_some(x + c, k - c), k - c);
}

// To 0..255 over the row's own range, zero included so that padding and GELU's floor are exact. A
// row with a NaN or an infinity is NaN throughout.
template <class T>
QuantizedRow row_to_int8(const T* x, const float* input_scale, int64_t k, uint32_t* out) {
  const auto scaled = [&](int64_t c) __attribute__((always_inline)) {
    const vf v = load_some(x + c, k - c);
    return input_scale ? v * load_some(input_scale + c, k - c) : v;
  };
  vf low{}, high{}, zeros{};
  for (int64_t c = 0; c < k; c += kLanes) {
    const vf v = scaled(c);
    low = vmin(low, v);
    high = vmax(high, v);
    zeros += v * 0.f;  // NaN where v is not finite, which vmin and vmax may lose
  }
  const float smallest = -largest(-low), range = largest(high) - smallest + sum(zeros);
  QuantizedRow row;
  uint8_t* values = reinterpret_cast<uint8_t*>(out);
  if (!(range <= FLT_MAX)) {
    std::memset(values, 0, size_t(k + 3) / 4 * 4);
    row.scale = NAN;
    return row;
  }
  row.scale = std::max(range / 255.f, FLT_MIN);  // its inverse is finite
  const float inverse = 1.f / row.scale;
  row.zero = int32_t(std::nearbyint(-smallest * inverse));
  const vf magic = splat(12582912.f), offset = splat(float(row.zero));
  for (int64_t c = 0; c < k; c += kLanes) {
    vf v = (scaled(c) * inverse + magic) - magic + offset;
    store_some(values + c, vmax(vmin(v, splat(255.f)), splat(0.f)), k - c);
  }
  for (int64_t c = k; c % 4; ++c) values[c] = 0;
  return row;
}

// Words of 4 bytes to pairs of words, in place: bytes 0 and 2 in 16 bits each, then 1 and 3.
BERTRON_INLINE void widen_row(uint32_t* row, int64_t words) {
  for (int64_t word = words; word-- > 0;) {
    const uint32_t bytes = row[word];
    row[2 * word] = bytes & 0xff00ff;
    row[2 * word + 1] = bytes >> 8 & 0xff00ff;
  }
}

// One row's layer norm, two passes over `values` (fp32), which it leaves centred.
template <class T>
void layer_norm_row(float* values, int64_t hidden, const T* weight, const T* bias, float eps, T* y) {
  vf total{};
  for (int64_t c = 0; c < hidden; c += kLanes) total += load_some(values + c, hidden - c);
  const float mean = sum(total) / float(hidden);
  vf squares{};
  for (int64_t c = 0; c < hidden; c += kLanes) {
    const int64_t left = hidden - c;
    vf v = load_some(values + c, left) - mean;
    store_some(values + c, v, left);
    v = load_some(values + c, left);  // the lanes beyond the row are 0 again
    squares += v * v;
  }
  const float factor = 1.f / std::sqrt(sum(squares) / float(hidden) + eps);
  for (int64_t c = 0; c < hidden; c += kLanes) {
    const int64_t left = hidden - c;
    const vf v = load_some(values + c, left) * factor;
    store_some(y + c, v * load_some(weight + c, left) + load_some(bias + c, left), left);
  }
}

// Parts of `size` that `count` makes; or the size, where there are so many parts.
constexpr int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// f(begin, end) on parts of [0, count) of at most `chunk`.
template <class F>
void parallel(bertron::Threads threads, int64_t count, int64_t chunk, const F& f) {
  if (threads.count == 1 || count <= chunk) {
    for (int64_t begin = 0; begin < count; begin += chunk)
      f(begin, std::min(begin + chunk, count));
    return;
  }
  bertron::share(
      threads.count, count, chunk,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<const F*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// On parts small enough that a thread which begins late, or has the longer ones, is made up for.
template <class F>
void parallel(bertron::Threads threads, int64_t count, const F& f) {
  constexpr int64_t kPartsPerThread = 8;
  if (count > 0) parallel(threads, count, parts_of(count, threads.count * kPartsPerThread), f);
}

// Memory of a thread's own, kept between calls: a forward asks for the same sizes again and again.
template <class T>
T* scratch(int slot, int64_t count) {
  constexpr std::align_val_t alignment{64};
  struct Block {
    void* data = nullptr;
    size_t size = 0;
    ~Block() { operator delete(data, alignment); }
  };
  static thread_local Block blocks[4];
  Block& block = blocks[slot];
  const size_t wanted = size_t(count) * sizeof(T);
  if (block.size < wanted) {
    operator delete(block.data, alignment);
    block.data = nullptr, block.size = 0;  // should there be no memory
    block.data = operator new(wanted, alignment);
    block.size = wanted;
  }
  return static_cast<T*>(block.data);
}

// Rows times panels [first, last), for one product and one type of each activation.
template <class Dot, class In, class Out>
struct Gemm {
  const bertron::Linear& p;
  const int64_t stored_words = bertron::words(Dot::product, p.k);
  const int64_t words = stored_words - (Dot::product == Product::int8 ? 1 : 0);

  // Rows as words.
  struct Rows {
    int64_t begin, end;
    const word_u* words;  // of the first
    int64_t stride;
    const QuantizedRow* quantized;
    const word_u* at(int64_t row) const { return words + (row - begin) * stride; }
    // As few tiles as hold them, and as long: one of a row or two would wait for its own sums.
    int64_t tiles() const { return parts_of(end - begin, Dot::tile_rows); }
    int64_t bound(int64_t tile) const { return begin + (end - begin) * tile / tiles(); }
    // One of `count` parts, of whole tiles.
    Rows part(int64_t number, int64_t count) const {
      const int64_t first = bound(tiles() * number / count);
      return {first, bound(tiles() * (number + 1) / count), at(first), stride,
              quantized == nullptr ? nullptr : quantized + (first - begin)};
    }
  };

  // Those of x itself where they already stand as the product wants them; else this thread's memory,
  // until its next product. Many are shared among `threads`.
  Rows rows(int64_t begin, int64_t end, bertron::Threads threads = {1}) const {
    const In* x = static_cast<const In*>(p.x);
    if (std::is_same_v<In, typename Dot::Row> &&
        p.k % bertron::values_per_word(Dot::product) == 0)
      return {begin, end, reinterpret_cast<const word_u*>(x + begin * p.k), words * Dot::row_words,
              nullptr};
    const int64_t stride = words * Dot::row_words + 16;  // room for the last vector's store
    uint32_t* out = scratch<uint32_t>(0, (end - begin) * stride);
    QuantizedRow* quantized = scratch<QuantizedRow>(3, end - begin);
    parallel(threads, end - begin, kSharedRows, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        const In* values = x + (begin + row) * p.k;
        uint32_t* place = out + row * stride;
        if constexpr (Dot::product != Product::int8) {
          row_to<typename Dot::Row>(values, p.k, place);
        } else {
          quantized[row] = row_to_int8(values, p.input_scale, p.k, place);
          if constexpr (Dot::row_words == 2) widen_row(place, words);
        }
      }
    });
    return {begin, end, out, stride, quantized};
  }

  // `keep(row, column, values, left)` with the finished sums, bias included.
  template <class Keep>
  void multiply(const Rows& rows, int64_t first, int64_t last, const Keep& keep) const {
    Sums<Dot> sums;
    const bool is_short = rows.end - rows.begin <= kShortRows;
    for (int64_t panel = first; panel < last; ++panel) {
      if (!is_short)
        long_panel(rows, panel, sums, keep);
      else if (kIntoL1Alone)
        short_panel<0>(rows, panel, sums, keep);
      else
        short_panel<3>(rows, panel, sums, keep);
    }
  }

  template <class Keep>
  void long_panel(const Rows& rows, int64_t panel, Sums<Dot>& sums_of, const Keep& keep) const {
    alignas(64) float sums[Dot::tile_rows * kPanel];
    const uint32_t* b = static_cast<const uint32_t*>(p.weight) + panel * stored_words * kPanel;
    const int64_t columns = panel_columns(panel), tiles = rows.tiles();
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t row = rows.bound(i), count = rows.bound(i + 1) - row;
      sums_of(count, rows.at(row), rows.stride, b, kTileColumns, stored_words * kTileColumns,
              columns, words, sums, kPanel);
      finish(rows, row, count, panel * kPanel, columns, sums, kPanel, keep);
    }
  }

  template <int LOCALITY, class Keep>
  void short_panel(const Rows& rows, int64_t panel, Sums<Dot>& sums_of, const Keep& keep) const {
    alignas(64) float sums[kShortRows * kTileColumns];
    const uint32_t* panel_weight =
        static_cast<const uint32_t*>(p.weight) + panel * stored_words * kPanel;
    const int64_t columns = panel_columns(panel), tiles = rows.tiles();
    const int64_t parts = has_amx(Dot::product) || tiles > kFewTiles || words == 0
                              ? 1
                              : parts_of(words, kChunkWords);
    for (int64_t c = 0; c < columns; c += kTileColumns) {
      const uint32_t* b = panel_weight + c * stored_words;
      const int64_t width = std::min(kTileColumns, columns - c);
      // Each tile of rows fetches its share of the next words.
      const auto multiply = [&](int64_t word, int64_t end, auto ahead) {
        for (int64_t i = 0; i < tiles; ++i) {
          const int64_t row = rows.bound(i), count = rows.bound(i + 1) - row;
          float* own = sums + (row - rows.begin) * kTileColumns;
          sums_of(count, rows.at(row) + word * Dot::row_words, rows.stride,
                  b + word * kTileColumns, kTileColumns, 0, width, end - word, own, kTileColumns,
                  ahead);
          ahead.next += (end - word) * ahead.bytes;
          if (end == words)
            finish(rows, row, count, panel * kPanel + c, width, own, kTileColumns, keep);
        }
      };
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t word = words * part / parts, end = words * (part + 1) / parts;
        const int64_t bytes = kTileColumns * 4 / tiles;
        const char* next = reinterpret_cast<const char*>(b + end * kTileColumns);
        part == 0 ? multiply(word, end, Prefetch<LOCALITY, false>{next, bytes})
                  : multiply(word, end, Prefetch<LOCALITY, true>{next, bytes});
      }
    }
  }

  // Of a panel, in whole vectors.
  int64_t panel_columns(int64_t panel) const {
    return (std::min(kPanel, p.n - panel * kPanel) + kLanes - 1) / kLanes * kLanes;
  }

  // What the loop over the rows needs is copied here: its stores could be to any memory.
  template <class Keep>
  void finish(const Rows& rows, int64_t row, int64_t count, int64_t column0, int64_t columns,
              const float* sums, int64_t sums_stride, const Keep keep) const {
    constexpr bool is_int8 = Dot::product == Product::int8;
    const QuantizedRow* quantized = is_int8 ? rows.quantized + (row - rows.begin) : nullptr;
    for (int64_t c = 0; c < columns; c += kLanes) {
      const int64_t column = column0 + c, left = p.n - column;
      const vf bias = load_some(static_cast<const Out*>(p.bias) + column, left);
      const vf scale = is_int8 ? load_some(p.scale + column, left) : vf{};
      const vi weight_sums = is_int8 ? column_sums(column) : vi{};
      for (int64_t i = 0; i < count; ++i) {
        vf value = load(sums + i * sums_stride + c);
        if constexpr (is_int8) {
          // The row's offset taken back, then from integers to real values.
          const vi sum = reinterpret_cast<vi>(value) - weight_sums * quantized[i].zero;
          value = __builtin_convertvector(sum, vf) * quantized[i].scale * scale;
        }
        keep(row + i, column, value + bias, left);
      }
    }
  }

  // The weights' sums over the reduction, stored behind a column's words.
  vi column_sums(int64_t column) const {
    const uint32_t* place = static_cast<const uint32_t*>(p.weight) +
                            column / kPanel * stored_words * kPanel +
                            column_place(column % kPanel, stored_words) + words * kTileColumns;
    return load(reinterpret_cast<const int32_t*>(place));
  }
};

template <class T>
void add_norm_rows(const bertron::Linear& p, int64_t begin, int64_t end, float* totals) {
  const T* residual = static_cast<const T*>(p.residual);
  T* y = static_cast<T*>(p.y);
  for (int64_t row = begin; row < end; ++row) {
    float* total = totals + (row - begin) * p.n;
    for (int64_t c = 0; c < p.n; c += kLanes) {
      const int64_t left = p.n - c;
      store_some(total + c, load_some(total + c, left) + load_some(residual + row * p.n + c, left),
                 left);
    }
    layer_norm_row(total, p.n, static_cast<const T*>(p.norm_weight),
                   static_cast<const T*>(p.norm_bias), p.eps, y + row * p.n);
  }
}

// Keeps sums in fp32, for the layer norm that follows.
struct Keep {
  float* totals;
  int64_t n;
  void operator()(int64_t row, int64_t column, vf v, int64_t left) const {
    store_some(totals + row * n + column, v, left);
  }
};

// f(row, stop) on whole tiles of rows, at most chunk_rows; as many parts, about as long, for each
// thread.
template <class Dot, class F>
void parallel_rows(int64_t tokens, bertron::Threads threads, const F& f) {
  constexpr int64_t tile_rows = has_amx(Dot::product) ? kAmxRows : kTileRows;
  const int64_t tiles = parts_of(tokens, tile_rows);
  const int64_t parts = threads.count * parts_of(tokens, threads.count * chunk_rows(Dot::product));
  parallel(threads, tiles, parts_of(tiles, parts), [&](int64_t first, int64_t last) {
    f(first * tile_rows, std::min(last * tile_rows, tokens));
  });
}

template <class Dot, class In, class Out>
void linear_as(const bertron::Linear& p, bertron::Threads threads) {
  const Gemm<Dot, In, Out> gemm{p};
  const int64_t panels = bertron::panels(p.n);
  Out* y = static_cast<Out*>(p.y);
  const auto keep_output = [y, n = p.n, gelu = p.gelu](int64_t row, int64_t column, vf v,
                                                       int64_t left) {
    store_some(y + row * n + column, gelu ? gelu_of(v) : v, left);
  };
  // Many rows: each thread takes some through all columns. Few: each takes some columns.
  const bool by_rows = p.tokens >= rows_for_all(Dot::product) * threads.count;
  if (p.tokens == 0 || p.n == 0) return;
  if (by_rows && p.residual == nullptr) {
    parallel_rows<Dot>(p.tokens, threads, [&](int64_t row, int64_t stop) {
      gemm.multiply(gemm.rows(row, stop), 0, panels, keep_output);
    });
  } else if (by_rows) {
    parallel_rows<Dot>(p.tokens, threads, [&](int64_t row, int64_t stop) {
      float* totals = scratch<float>(1, chunk_rows(Dot::product) * p.n);
      gemm.multiply(gemm.rows(row, stop), 0, panels, Keep{totals - row * p.n, p.n});
      add_norm_rows<Out>(p, row, stop, totals);
    });
  } else {
    const auto rows = gemm.rows(0, p.tokens, threads);
    float* totals = p.residual == nullptr ? nullptr : scratch<float>(2, p.tokens * p.n);
    // More threads than half of the panels get some of a panel's rows each.
    const int64_t parts = std::clamp<int64_t>(parts_of(2 * threads.count, panels), 1,
                                              parts_of(p.tokens, 2 * Dot::tile_rows));
    parallel(threads, panels * parts, 1, [&](int64_t i, int64_t) {
      const auto some = rows.part(i % parts, parts);
      const int64_t panel = i / parts;
      totals == nullptr ? gemm.multiply(some, panel, panel + 1, keep_output)
                        : gemm.multiply(some, panel, panel + 1, Keep{totals, p.n});
    });
    if (totals == nullptr) return;
    parallel(threads, p.tokens, kSharedRows, [&](int64_t first, int64_t last) {
      add_norm_rows<Out>(p, first, last, totals + first * p.n);
    });
  }
}

// [N, K] row by row to panels.
void pack(const void* weight, int64_t n, int64_t k, Product product, void* packed) {
  const int64_t words = bertron::words(product, k), size = 4 / bertron::values_per_word(product);
  std::fill_n(static_cast<uint32_t*>(packed), bertron::panels(n) * words * kPanel, 0);
  for (int64_t row = 0; row < n; ++row) {
    const char* values = static_cast<const char*>(weight) + row * k * size;
    uint32_t* place =
        static_cast<uint32_t*>(packed) + row / kPanel * words * kPanel +
        column_place(row % kPanel, words);
    for (int64_t byte = 0; byte < k * size; byte += 4)
      std::memcpy(place + byte / 4 * kTileColumns, values + byte,
                  std::min<int64_t>(4, k * size - byte));
    if (product != Product::int8) continue;
    int32_t sum = 0;
    for (int64_t c = 0; c < k; ++c) sum += static_cast<signed char>(values[c]);
    place[(words - 1) * kTileColumns] = uint32_t(sum);
  }
}

}  // namespace
