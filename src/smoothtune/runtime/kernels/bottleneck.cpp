// Narrow products of runs of packed tokens, each run with weights of its own: into += act(x W_down^T + b_down) W_up^T + b_up.
//
// 32 tokens at a time go down and up again, so that what is between never leaves the cache. Weights are bf16, packed as
// `gemm_pack` does it; sums are float32, the narrow state is rounded to bf16.
#include "activation.h"
#include "gemm_tiles.h"

#if TILES
namespace {

// As the caller lays it out: 64-bit numbers and addresses. Biases may be missing; `size` is R. Features [column, column +
// width) are changed; both, and R, are multiples of 32.
struct Run {
  int64_t begin, end, column, width;
  const bf16* down;
  const float* down_bias;
  const bf16* up;
  const float* up_bias;
  int64_t size, gelu;
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

template <bool gelu>
void narrowed(const float* sums, const float* bias, int64_t rows, int64_t size, bf16* hidden) {
  for (int64_t r = 0; r < rows; ++r, sums += SIDE, hidden += size) {
    const __m512 low = biased(sums, bias), high = biased(sums + 16, bias ? bias + 16 : nullptr);
    gelu ? store32(hidden, brief_gelu16(low), brief_gelu16(high)) : store32(hidden, low, high);
  }
}

inline void added(const float* sums, const float* bias, int64_t rows, int64_t columns, bf16* into) {
  for (int64_t r = 0; r < rows; ++r, sums += SIDE, into += columns) {
    const __m512 low = _mm512_add_ps(load16(into), biased(sums, bias));
    const __m512 high = _mm512_add_ps(load16(into + 16), biased(sums + 16, bias ? bias + 16 : nullptr));
    store32(into, low, high);
  }
}

struct Room {
  Buffer<bf16> padded, hidden;
  Buffer<float> sums;
};

// Tokens [row, row + rows) of a run, at most 32.
void through(const Run& run, const bf16* x, bf16* into, int64_t row, int64_t rows, int64_t inner, int64_t columns,
             Room& room) {
  const bool tall = rows > 16;
  float* sums = room.sums.of(BLOCK);
  bf16* hidden = room.hidden.of(SIDE * run.size);
  const bf16* a = x + row * inner;
  if (rows % 16) {  // tiles reach beyond the last
    bf16* padded = room.padded.of(SIDE * inner);
    std::memcpy(padded, a, size_t(2 * rows * inner));
    std::memset(padded + rows * inner, 0, size_t(2 * (SIDE - rows) * inner));
    a = padded;
  }
  Tiles::settle(a);
  for (int64_t p = 0; p < run.size / SIDE; ++p) {
    multiply_block(a, inner, run.down + p * SIDE * inner, tall, sums);
    const float* bias = run.down_bias ? run.down_bias + p * SIDE : nullptr;
    const int64_t filled = tall ? SIDE : 16;  // rows of padding too: the product up reads them
    run.gelu ? narrowed<true>(sums, bias, filled, run.size, hidden + p * SIDE)
             : narrowed<false>(sums, bias, filled, run.size, hidden + p * SIDE);
  }
  Tiles::settle(hidden);
  for (int64_t p = 0; p < run.width / SIDE; ++p) {
    multiply_block(hidden, run.size, run.up + p * SIDE * run.size, tall, sums);
    added(sums, run.up_bias ? run.up_bias + p * SIDE : nullptr, rows, columns, into + row * columns + run.column + p * SIDE);
  }
}

int64_t blocks_of(const Run& run) { return (run.end - run.begin + SIDE - 1) / SIDE; }

}  // namespace

// `x` (N, K) may be `into` (N, M) itself where a run changes all of it. Runs do not overlap.
API void bottleneck_add(const void* table, int64_t count, const bf16* x, bf16* into, int64_t inner, int64_t columns) {
  const Run* runs = static_cast<const Run*>(table);
  int64_t all = 0;
  for (int64_t n = 0; n < count; ++n) all += blocks_of(runs[n]);
#pragma omp parallel
  {
    static thread_local Room room;
    Tiles tiles;
    const int64_t me = omp_get_thread_num(), threads = omp_get_num_threads();
    const int64_t first = all * me / threads, last = all * (me + 1) / threads;
    int64_t block = 0;
    for (int64_t n = 0; n < count; ++n)
      for (int64_t row = runs[n].begin; row < runs[n].end; row += SIDE, ++block)
        if (block >= first && block < last)
          through(runs[n], x, into, row, std::min(SIDE, runs[n].end - row), inner, columns, room);
  }
}
#else
API void bottleneck_add(const void*, int64_t, const void*, void*, int64_t, int64_t) {}
#endif
