// y = x w^T for few rows of x, summed in float32, from weights that are packed in blocks of outputs.
//
// A block is narrow enough for the sums of six rows to stay in registers, and lies in memory as it is read: for every
// input the weights of the block's outputs. Weights of 8 and 16 bits are widened on their way into registers.

#include <ATen/cpu/vec/vec.h>
#include <c10/util/Unroll.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

using at::vec::Vectorized;
using Vector = Vectorized<float>;

constexpr int kWidth = Vector::size();
constexpr int kBlock = 2 * kWidth;  // outputs that are computed together
constexpr int kRows = 6;            // of a tile: 12 sums, 2 weights and an input fill the 16 registers of AVX2
constexpr int kDepth = 512;         // inputs that all rows take their turn at, while the weights are in the cache
constexpr int kAhead = 8192;        // bytes; by themselves processors read ahead to the end of a page only

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef uint32_t Pairs __attribute__((vector_size(4 * kWidth)));

// The weights of an input and one block of outputs.
static inline void load(const float* w, Vector& low, Vector& high) {
  low = Vector::loadu(w);
  high = Vector::loadu(w + kWidth);
}

// The lower outputs are the even ones, the upper ones lie between them: two operations instead of five.
static inline void load(const c10::BFloat16* w, Vector& low, Vector& high) {
  Pairs pairs;
  std::memcpy(&pairs, w, sizeof(pairs));
  low = Vector(reinterpret_cast<Floats>(pairs << 16));
  high = Vector(reinterpret_cast<Floats>(pairs & 0xffff0000u));
}

static inline Vector widen(const int8_t* w) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w));
  return at::vec::convert_int8_to_float(Vectorized<int8_t>(_mm512_castsi128_si512(bytes)));
#else
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(w));
  return at::vec::convert_int8_to_float(Vectorized<int8_t>(_mm256_castsi128_si256(bytes)));
#endif
}

static inline void load(const int8_t* w, Vector& low, Vector& high) {
  low = widen(w);
  high = widen(w + kWidth);
}

// Adds `depth` products to the sums of `rows` rows and one block of outputs.
//
// GCC 12 leaves an array of `Vector`, or one whose loop it unrolls itself, in memory: half as fast.
template <int rows, bool prefetch, typename Weight>
static void add_tile(const float* __restrict x, int64_t inputs, const Weight* __restrict w, int depth,
                     float* __restrict y, int64_t outputs) {
  const c10::ForcedUnroll<rows> for_each_row;
  Floats sums[rows][2];
  for_each_row([&](auto row) {
    sums[row][0] = Vector::loadu(y + row * outputs);
    sums[row][1] = Vector::loadu(y + row * outputs + kWidth);
  });
  for (int k = 0; k < depth; ++k, w += kBlock) {
    Vector low, high;
    load(w, low, high);
    if (prefetch) {
      __builtin_prefetch(reinterpret_cast<const char*>(w) + kAhead);
    }
    for_each_row([&](auto row) {
      const Vector input(x[row * inputs + k]);
      sums[row][0] = at::vec::fmadd(input, low, Vector(sums[row][0]));
      sums[row][1] = at::vec::fmadd(input, high, Vector(sums[row][1]));
    });
  }
  for_each_row([&](auto row) {
    Vector(sums[row][0]).store(y + row * outputs);
    Vector(sums[row][1]).store(y + row * outputs + kWidth);
  });
}

// The same for a number of rows that is known now.
template <bool prefetch, typename Weight, int rows = kRows>
static inline void add_rows(int count, const float* x, int64_t inputs, const Weight* w, int depth, float* y,
                            int64_t outputs) {
  if constexpr (rows > 0) {
    if (count == rows) {
      add_tile<rows, prefetch>(x, inputs, w, depth, y, outputs);
    } else {
      add_rows<prefetch, Weight, rows - 1>(count, x, inputs, w, depth, y, outputs);
    }
  }
}

template <typename Weight>
static void compute_block(const float* x, int64_t rows, int64_t inputs, const Weight* w, float* y, int64_t outputs) {
  for (int64_t row = 0; row < rows; ++row) {
    std::fill_n(y + row * outputs, kBlock, 0.0f);
  }
  const int64_t tiles = (rows + kRows - 1) / kRows;  // of almost equal size: small ones keep few sums in flight
  const int64_t step = tiles == 1 ? inputs : kDepth;
  for (int64_t start = 0; start < inputs; start += step, w += step * kBlock) {
    const int depth = std::min(step, inputs - start);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = rows * tile / tiles, count = rows * (tile + 1) / tiles - first;
      const auto add = tile == 0 ? add_rows<true, Weight> : add_rows<false, Weight>;
      add(count, x + first * inputs + start, inputs, w, depth, y + first * outputs, outputs);
    }
  }
}

template <typename Weight>
static void linear(const float* x, const Weight* w, float* y, int64_t rows, int64_t inputs, int64_t outputs,
                   int threads) {
#pragma omp parallel num_threads(threads)
  {
    const int64_t blocks = outputs / kBlock, thread = omp_get_thread_num(), all = omp_get_num_threads();
    for (int64_t block = blocks * thread / all; block < blocks * (thread + 1) / all; ++block) {
      compute_block(x, rows, inputs, w + block * inputs * kBlock, y + block * kBlock, outputs);
    }
  }
}

// x (rows, inputs), w (outputs / block, inputs, block), y (rows, outputs); all contiguous.
#define LINEAR(name, Weight)                                                                                    \
  extern "C" void name(const float* x, const Weight* w, float* y, int64_t rows, int64_t inputs, int64_t outputs, \
                       int threads) {                                                                           \
    linear(x, w, y, rows, inputs, outputs, threads);                                                            \
  }

LINEAR(linear_float32, float)
LINEAR(linear_bfloat16, c10::BFloat16)
LINEAR(linear_int8, int8_t)

extern "C" int block_size() { return kBlock; }
