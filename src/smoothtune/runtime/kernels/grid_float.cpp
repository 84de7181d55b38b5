// Convolutions 3 x 3 (or 1 x 1) over packed grids of floats: forward, gradient of the input, gradient of the weights.
//
// Channels in and out are multiples of 32. Blocks of sums stay in registers: cells x 32 channels, or 8 x 32 weights. Every sum
// is made in one order, whatever the number of threads. Knows nothing of norms or dropout.
#include "grid.h"

API int grid_float_available();

#if defined(__AVX512F__) && defined(__AVX512BW__)  // as grid.cpp, which goes with it

#include <array>
#include <utility>

namespace {

constexpr int ROWS = 12;         // cells of a block of sums: 24 registers
constexpr int INPUTS = 8;        // rows of a block of a weight's gradient: 16 registers
constexpr int64_t CHUNK = 256;   // cells whose operands stay in the second-level cache beside the sums, and that are added up first

// Distance, in cells, from a cell to the one that a tap reads.
inline int64_t offset_of(int64_t tap, int64_t taps, int64_t pitch) {
  return taps == 1 ? 0 : (tap / 3 - 1) * pitch + tap % 3 - 1;
}

struct Convolution {
  const float *x, *packed, *bias, *more;
  float* y;
  int64_t taps, in, out;
};

// `rows` cells from `cell` on, 32 channels of the output from `o` on.
template <int rows>
void block(const Convolution& c, int64_t cell, int64_t pitch, int64_t o) {
  __m512 low[rows], high[rows];
  for (int r = 0; r < rows; ++r) low[r] = high[r] = _mm512_setzero_ps();
  const float* weights = c.packed + o * c.taps * c.in;
  for (int64_t tap = 0; tap < c.taps; ++tap) {
    const float* x = c.x + (cell + offset_of(tap, c.taps, pitch)) * c.in;
    for (int64_t k = 0; k < c.in; ++k, weights += 32) {
      const __m512 left = _mm512_loadu_ps(weights), right = _mm512_loadu_ps(weights + 16);
      for (int r = 0; r < rows; ++r) {
        const __m512 value = _mm512_set1_ps(x[r * c.in + k]);
        low[r] = _mm512_fmadd_ps(value, left, low[r]);
        high[r] = _mm512_fmadd_ps(value, right, high[r]);
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    const int64_t at = (cell + r) * c.out + o;
    if (c.bias) {
      low[r] = _mm512_add_ps(low[r], _mm512_loadu_ps(c.bias + o));
      high[r] = _mm512_add_ps(high[r], _mm512_loadu_ps(c.bias + o + 16));
    }
    if (c.more) {
      low[r] = _mm512_add_ps(low[r], _mm512_loadu_ps(c.more + at));
      high[r] = _mm512_add_ps(high[r], _mm512_loadu_ps(c.more + at + 16));
    }
    _mm512_storeu_ps(c.y + at, low[r]);
    _mm512_storeu_ps(c.y + at + 16, high[r]);
  }
}

using Block = void(const Convolution&, int64_t, int64_t, int64_t);

template <size_t... rows>
constexpr std::array<Block*, sizeof...(rows)> blocks_of(std::index_sequence<rows...>) {
  return {&block<int(rows) + 1>...};
}

// Blocks of 1 to ROWS cells.
constexpr std::array<Block*, ROWS> BLOCKS = blocks_of(std::make_index_sequence<ROWS>());

// Adds cells [from, to) of one example to INPUTS x 32 sums of one tap.
void accumulate(const float* g, const float* x, int64_t in, int64_t out, int64_t from, int64_t to, int64_t offset,
                float* sums) {
  __m512 low[INPUTS], high[INPUTS];
  for (int r = 0; r < INPUTS; ++r) low[r] = high[r] = _mm512_setzero_ps();
  for (int64_t cell = from; cell < to; ++cell) {
    const __m512 left = _mm512_loadu_ps(g + cell * out), right = _mm512_loadu_ps(g + cell * out + 16);
    const float* values = x + (cell + offset) * in;
    for (int r = 0; r < INPUTS; ++r) {
      const __m512 value = _mm512_set1_ps(values[r]);
      low[r] = _mm512_fmadd_ps(value, left, low[r]);
      high[r] = _mm512_fmadd_ps(value, right, high[r]);
    }
  }
  for (int r = 0; r < INPUTS; ++r) {
    _mm512_storeu_ps(sums + 32 * r, _mm512_add_ps(_mm512_loadu_ps(sums + 32 * r), low[r]));
    _mm512_storeu_ps(sums + 32 * r + 16, _mm512_add_ps(_mm512_loadu_ps(sums + 32 * r + 16), high[r]));
  }
}

}  // namespace

API int grid_float_available() { return 1; }

// `weight` (out, in, taps) to [out / 32][taps][in][32]. `backward`: what takes a gradient of the output (cells, out) to one of
// the input: inputs and outputs change places, taps their order.
API void grid_float_pack(const float* weight, int64_t out, int64_t in, int64_t taps, int backward, float* packed) {
  const int64_t reads = backward ? out : in, writes = backward ? in : out;
#pragma omp parallel for schedule(static)
  for (int64_t panel = 0; panel < writes / 32; ++panel)
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t k = 0; k < reads; ++k)
        for (int64_t c = 0; c < 32; ++c) {
          const int64_t w = panel * 32 + c, source = backward ? taps - 1 - tap : tap;
          const int64_t o = backward ? k : w, i = backward ? w : k;
          packed[((panel * taps + tap) * reads + k) * 32 + c] = weight[(o * in + i) * taps + source];
        }
}

// `y` (cells, out) of `x` (cells, in), whose cells that are not real hold zeros; what `y` holds there means nothing.
// `bias` (out) and `more` (cells, out), unless null, are added.
API void grid_float_convolve(const Example* examples, int64_t count, const float* x, const float* packed, const float* bias,
                             const float* more, float* y, int64_t taps, int64_t in, int64_t out) {
  const Convolution convolution{x, packed, bias, more, y, taps, in, out};
  std::vector<std::pair<int32_t, int32_t>> parts;
  for (int64_t b = 0; b < count; ++b)
    for (int64_t k = 0; k < examples[b].span(); k += 4 * ROWS) parts.emplace_back(int32_t(b), int32_t(k));
#pragma omp parallel for schedule(static)
  for (size_t number = 0; number < parts.size(); ++number) {
    const Example& example = examples[parts[number].first];
    const int64_t from = parts[number].second, to = std::min(from + 4 * ROWS, example.span());
    for (int64_t o = 0; o < out; o += 32)
      for (int64_t k = from; k < to; k += ROWS)
        BLOCKS[size_t(std::min<int64_t>(ROWS, to - k) - 1)](convolution, example.first + k, example.pitch(), o);
  }
}

// `gradient` (out, in, taps) from `g` (cells, out), zero where cells are not real, and `x` (cells, in). `sums` (taps, in, out)
// is scratch.
API void grid_float_weight_gradient(const Example* examples, int64_t count, const float* g, const float* x, float* sums,
                                    float* gradient, int64_t taps, int64_t in, int64_t out) {
  const int64_t across = in / INPUTS, panels = out / 32;
#pragma omp parallel
  {
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    const int64_t first = taps * across * me / all, last = taps * across * (me + 1) / all;
    std::fill(sums + first * panels * 32 * INPUTS, sums + last * panels * 32 * INPUTS, 0.0f);
    for (int64_t b = 0; b < count; ++b) {
      const Example& example = examples[b];
      for (int64_t k = 0; k < example.span(); k += CHUNK) {
        const int64_t from = example.first + k, to = example.first + std::min(k + CHUNK, example.span());
        for (int64_t part = first; part < last; ++part)
          for (int64_t panel = 0; panel < panels; ++panel)
            accumulate(g + panel * 32, x + part % across * INPUTS, in, out, from, to,
                       offset_of(part / across, taps, example.pitch()), sums + (part * panels + panel) * 32 * INPUTS);
      }
    }
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t o = 0; o < out; ++o)
      for (int64_t i = 0; i < in; ++i)
        for (int64_t tap = 0; tap < taps; ++tap)
          gradient[(o * in + i) * taps + tap] =
              sums[((tap * across + i / INPUTS) * panels + o / 32) * 32 * INPUTS + i % INPUTS * 32 + o % 32];
  }
}

#else

API int grid_float_available() { return 0; }
API void grid_float_pack(const float*, int64_t, int64_t, int64_t, int, float*) {}
API void grid_float_convolve(const Example*, int64_t, const float*, const float*, const float*, const float*, float*,
                             int64_t, int64_t, int64_t) {}
API void grid_float_weight_gradient(const Example*, int64_t, const float*, const float*, float*, float*, int64_t, int64_t,
                                    int64_t) {}

#endif
