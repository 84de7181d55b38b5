// Narrow products of runs of packed tokens, each run with weights of its own: onto + act(x W_down^T + b_down) W_up^T + b_up.
//
// 32 tokens at a time go down and up again, so that what is between need not leave the cache. Weights are bf16, packed as
// `gemm_pack` does it; sums are float32, the narrow state is rounded to bf16. The way back of a gradient is one of these
// products too: down through W_up, times the slope of act, up through W_down.
#include "activation.h"
#include "gemm_tiles.h"

#if TILES
namespace {

// What is done to the narrow state.
enum Act : int64_t { kNothing, kBriefGelu, kGelu, kTimesSlope };

// As the caller lays it out: 64-bit numbers and addresses. Biases may be missing; `size` is R. Features [column, column +
// width) are changed; both, and R, are multiples of 32.
struct Run {
  int64_t begin, end, column, width;
  const bf16* down;
  const float* down_bias;
  const bf16* up;
  const float* up_bias;
  int64_t size;
  Act act;
};

// Tensors of all tokens: `x` (N, inner), `onto` and `into` (N, columns), and, where they are kept, the narrow state and its
// slope (N, R). Without `into` nothing goes up again. kTimesSlope gives the sum over each 32 tokens, (N / 32, R), to `partial`.
struct Whole {
  const bf16 *x, *onto;
  bf16* into;
  int64_t inner, columns;
  bf16 *hidden, *slope;
  float* partial;
};

inline void multiply_block(const bf16* a, int64_t inner, const bf16* panel, bool tall, float* sums) {
  zero_sums();
  for (int64_t s = 0; s < inner / SIDE; ++s, a += SIDE, panel += BLOCK) {
    _tile_loadd(6, panel, 64);
    _tile_loadd(7, panel + HALF, 64);
    _tile_loadd(4, a, 2 * inner);
    if (tall) _tile_loadd(5, a + 16 * inner, 2 * inner);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (tall) _tile_dpbf16ps(2, 5, 6);
    if (tall) _tile_dpbf16ps(3, 5, 7);
  }
  store_sums(sums, SIDE);
}

inline __m512 biased(const float* sums, const float* bias) {
  const __m512 sum = _mm512_loadu_ps(sums);
  return bias ? _mm512_add_ps(sum, _mm512_loadu_ps(bias)) : sum;
}

inline void store32(bf16* to, __m512 low, __m512 high) {
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

// Where 32 columns of the narrow state of some tokens go: `filled` rows of `hidden`, `rows` of which are real. kGelu writes
// the real ones of `slope`, kTimesSlope reads them and writes their sum.
struct State {
  int64_t filled, rows, size;
  bf16 *hidden, *slope;
  float* sum;
};

template <Act act>
void narrowed(const float* sums, const float* bias, State to) {
  __m512 low_sum = _mm512_setzero_ps(), high_sum = low_sum;
  for (int64_t r = 0; r < to.filled; ++r, sums += SIDE, to.hidden += to.size) {
    __m512 low = biased(sums, bias), high = biased(sums + 16, bias ? bias + 16 : nullptr);
    if (act == kBriefGelu) low = brief_gelu16(low), high = brief_gelu16(high);
    if (act == kGelu) {
      __m512 value[2], change[2];
      gelu16(low, value[0], change[0]);
      gelu16(high, value[1], change[1]);
      low = value[0], high = value[1];
      if (r < to.rows) store32(to.slope + r * to.size, change[0], change[1]);
    }
    if (act == kTimesSlope && r < to.rows) {
      low = _mm512_mul_ps(low, load16(to.slope + r * to.size));
      high = _mm512_mul_ps(high, load16(to.slope + r * to.size + 16));
      low_sum = _mm512_add_ps(low_sum, low);
      high_sum = _mm512_add_ps(high_sum, high);
    }
    store32(to.hidden, low, high);
  }
  if (act != kTimesSlope) return;
  _mm512_storeu_ps(to.sum, low_sum);
  _mm512_storeu_ps(to.sum + 16, high_sum);
}

void narrowed(Act act, const float* sums, const float* bias, const State& to) {
  if (act == kNothing) narrowed<kNothing>(sums, bias, to);
  if (act == kBriefGelu) narrowed<kBriefGelu>(sums, bias, to);
  if (act == kGelu) narrowed<kGelu>(sums, bias, to);
  if (act == kTimesSlope) narrowed<kTimesSlope>(sums, bias, to);
}

inline void added(const float* sums, const float* bias, int64_t rows, int64_t columns, const bf16* onto, bf16* into) {
  for (int64_t r = 0; r < rows; ++r, sums += SIDE, onto += columns, into += columns) {
    const __m512 low = _mm512_add_ps(load16(onto), biased(sums, bias));
    const __m512 high = _mm512_add_ps(load16(onto + 16), biased(sums + 16, bias ? bias + 16 : nullptr));
    store32(into, low, high);
  }
}

struct Room {
  Buffer<bf16> padded, hidden;
  Buffer<float> sums;
};

// Tokens [row, row + rows) of a run, at most 32.
void through(const Run& run, const Whole& whole, int64_t row, int64_t rows, Room& room) {
  const bool tall = rows > 16;
  const int64_t inner = whole.inner, columns = whole.columns;
  float* sums = room.sums.of(BLOCK);
  bf16* hidden = room.hidden.of(SIDE * run.size);
  const bf16* a = whole.x + row * inner;
  if (rows % 16) {  // tiles reach beyond the last
    bf16* padded = room.padded.of(SIDE * inner);
    std::memcpy(padded, a, size_t(2 * rows * inner));
    std::memset(padded + rows * inner, 0, size_t(2 * (SIDE - rows) * inner));
    a = padded;
  }
  Tiles::settle(a);
  const int64_t filled = tall ? SIDE : 16;  // rows of padding too: the product up reads them
  for (int64_t p = 0; p < run.size / SIDE; ++p) {
    multiply_block(a, inner, run.down + p * SIDE * inner, tall, sums);
    const float* bias = run.down_bias ? run.down_bias + p * SIDE : nullptr;
    bf16* slope = whole.slope ? whole.slope + row * run.size + p * SIDE : nullptr;
    float* sum = whole.partial ? whole.partial + row / SIDE * run.size + p * SIDE : nullptr;
    narrowed(run.act, sums, bias, State{filled, rows, run.size, hidden + p * SIDE, slope, sum});
  }
  if (whole.hidden) std::memcpy(whole.hidden + row * run.size, hidden, size_t(2 * rows * run.size));
  if (!whole.into) return;
  Tiles::settle(hidden);
  for (int64_t p = 0; p < run.width / SIDE; ++p) {
    multiply_block(hidden, run.size, run.up + p * SIDE * run.size, tall, sums);
    const int64_t at = row * columns + run.column + p * SIDE;
    added(sums, run.up_bias ? run.up_bias + p * SIDE : nullptr, rows, columns, whole.onto + at, whole.into + at);
  }
}

int64_t blocks_of(const Run& run) { return (run.end - run.begin + SIDE - 1) / SIDE; }

}  // namespace

// `x` (N, K) and `onto` (N, M) may be `into` (N, M) itself where a run changes all of it, `onto` always. Runs do not overlap;
// with `hidden` there is one, of all tokens. `total` (R,) is the sum of the narrow state over the tokens, for kTimesSlope alone.
API void bottleneck_add(const void* table, int64_t count, const bf16* x, const bf16* onto, bf16* into, int64_t inner,
                        int64_t columns, bf16* hidden, bf16* slope, float* total) {
  const Run* runs = static_cast<const Run*>(table);
  int64_t all = 0;
  for (int64_t n = 0; n < count; ++n) all += blocks_of(runs[n]);
  std::vector<float> partial(total ? size_t(all * runs[0].size) : 0);
  const Whole whole{x, onto, into, inner, columns, hidden, slope, total ? partial.data() : nullptr};
#pragma omp parallel
  {
    static thread_local Room room;
    Tiles tiles;
    const int64_t me = omp_get_thread_num(), threads = omp_get_num_threads();
    const int64_t first = all * me / threads, last = all * (me + 1) / threads;
    int64_t block = 0;
    for (int64_t n = 0; n < count; ++n)
      for (int64_t row = runs[n].begin; row < runs[n].end; row += SIDE, ++block)
        if (block >= first && block < last) through(runs[n], whole, row, std::min(SIDE, runs[n].end - row), room);
  }
  if (!total) return;
  std::fill(total, total + runs[0].size, 0.0f);
  for (int64_t block = 0; block < all; ++block)
    for (int64_t c = 0; c < runs[0].size; ++c) total[c] += partial[size_t(block * runs[0].size + c)];
}
#else
API void bottleneck_add(const void*, int64_t, const void*, const void*, void*, int64_t, int64_t, void*, void*, void*) {}
#endif
