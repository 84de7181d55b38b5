// Products of packed tokens with a weight, in bf16 with float32 sums: y = x W^T + b and dx = g W, or with a second product
// added before rounding, y = x W^T + h U^T.
//
// The weight is packed once and read many times: `forward` for the first, `backward` for the second. Panel p of a
// packed weight makes columns 32 p ... 32 p + 31 of the result.
#include "activation.h"
#include "gemm_tiles.h"

#if TILES
namespace {

constexpr int64_t LONGEST = 16;  // blocks of a panel at a time: 32 rows of A for them fit the L1 cache
constexpr int64_t kAlone = 64;   // blocks that one thread packs sooner than two can be woken

inline void store32(float* to, __m512 low, __m512 high) {
  _mm512_storeu_ps(to, low);
  _mm512_storeu_ps(to + 16, high);
}

inline void store32(bf16* to, __m512 low, __m512 high) {
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

// 32 sums with their bias, or the GELU of that, rounded to T.
template <typename T, bool gelu>
inline void store_row(const float* sums, const float* bias, T* out) {
  __m512 low = _mm512_loadu_ps(sums), high = _mm512_loadu_ps(sums + 16);
  if (bias) {
    low = _mm512_add_ps(low, _mm512_loadu_ps(bias));
    high = _mm512_add_ps(high, _mm512_loadu_ps(bias + 16));
  }
  gelu ? store32(out, brief_gelu16(low), brief_gelu16(high)) : store32(out, low, high);
}

// A block of sums that is still to be written: done between the tile products of the next one.
template <typename T, bool gelu>
struct Unwritten {
  const float *sums = nullptr, *bias = nullptr;
  T* out = nullptr;
  int64_t stride = 0, row = 0, rows = 0;

  inline void write(int64_t count) {
    for (const int64_t end = std::min(row + count, rows); row < end; ++row)
      store_row<T, gelu>(sums + row * SIDE, bias, out + row * stride);
  }
};

// What is multiplied after the first product, into the same sums: rows of `a` are as many bytes apart as it has `steps` of 64.
struct Second {
  const bf16 *a = nullptr, *b = nullptr;
  int64_t steps = 0;
};

template <bool tall>
inline void multiply_step(const bf16* a, int64_t a_bytes, const bf16* b) {
  _tile_stream_loadd(6, b, 64);
  _tile_stream_loadd(7, b + HALF, 64);
  _tile_loadd(4, a, a_bytes);
  if (tall) _tile_loadd(5, a + 8 * a_bytes, a_bytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if (tall) _tile_dpbf16ps(2, 5, 6);
  if (tall) _tile_dpbf16ps(3, 5, 7);
}

// One block of sums: `tall` rows of tiles (1 or 2) times two columns of tiles. A stays in the L1 cache, B passes by.
template <bool tall, typename T, bool gelu>
inline void multiply_block(const bf16* a, int64_t a_bytes, const bf16* b, int64_t steps, const Second& second, float* sums,
                           bool add, Unwritten<T, gelu>& last) {
  const int64_t share = (last.rows - last.row + steps - 1) / steps;
  add ? load_sums(sums, SIDE) : zero_sums();
  for (int64_t s = 0; s < steps; ++s, a += SIDE, b += BLOCK) {
    multiply_step<tall>(a, a_bytes, b);
    last.write(share);
  }
  for (int64_t s = 0; s < second.steps; ++s)
    multiply_step<tall>(second.a + s * SIDE, 2 * SIDE * second.steps, second.b + s * BLOCK);
  last.write(SIDE);
  store_sums<tall>(sums, SIDE);
}

// `h` (rows, narrow) and `narrow_weight` are the second product, none where `narrow` is 0.
struct Product {
  const bf16 *x, *weight;
  const float* bias;
  int64_t rows, inner, columns;
  const bf16 *h = nullptr, *narrow_weight = nullptr;
  int64_t narrow = 0;
};

// `rows` rows of `inner` numbers as they are, or followed by zeros where tiles would reach beyond the last.
inline const bf16* whole_tiles(const bf16* a, int64_t rows, int64_t inner, Buffer<bf16>& buffer) {
  if (rows % 16 == 0) return a;
  bf16* padded = buffer.of(SIDE * inner);
  std::memcpy(padded, a, size_t(2 * rows * inner));
  std::memset(padded + rows * inner, 0, size_t(2 * (SIDE - rows) * inner));
  Tiles::settle(padded);
  return padded;
}

// Rows [first, end) times panels [left, right), by the calling thread.
template <bool gelu, typename T>
void multiply_part(const Product& p, T* out, int64_t first, int64_t end, int64_t left, int64_t right) {
  static thread_local Buffer<float> buffer;
  static thread_local Buffer<bf16> padded, padded_narrow;
  const int64_t steps = p.inner / SIDE, a_bytes = 2 * p.inner, chunks = (steps + LONGEST - 1) / LONGEST;
  const int64_t buffers = chunks == 1 ? 2 : std::max(right - left, int64_t(2));
  float* sums = buffer.of(buffers * BLOCK);
  Tiles tiles;
  Unwritten<T, gelu> last;
  last.stride = p.columns;
  for (int64_t row = first; row < end; row += SIDE) {
    const int64_t rows = std::min(SIDE, end - row);
    const bf16* a = whole_tiles(p.x + row * p.inner, rows, p.inner, padded);
    const bf16* h = p.narrow ? whole_tiles(p.h + row * p.narrow, rows, p.narrow, padded_narrow) : nullptr;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t from = steps * chunk / chunks, count = steps * (chunk + 1) / chunks - from;
      for (int64_t panel = left; panel < right; ++panel) {
        const bf16* b = p.weight + (panel * steps + from) * BLOCK;
        float* to = sums + (panel - left) % buffers * BLOCK;
        Second second;
        if (h && chunk + 1 == chunks) second = {h, p.narrow_weight + panel * p.narrow * SIDE, p.narrow / SIDE};
        rows > 16 ? multiply_block<true>(a + from * SIDE, a_bytes, b, count, second, to, chunk > 0, last)
                  : multiply_block<false>(a + from * SIDE, a_bytes, b, count, second, to, chunk > 0, last);
        if (chunk + 1 < chunks) continue;
        last.sums = to;
        last.bias = p.bias ? p.bias + panel * SIDE : nullptr;
        last.out = out + row * p.columns + panel * SIDE;
        last.row = 0;
        last.rows = rows;
      }
    }
  }
  last.write(SIDE);
}

inline int64_t share(int64_t count, int64_t part, int64_t parts) { return count * part / parts; }

// Rows are shared out among the threads, or columns where that is more even.
template <bool gelu, typename T>
void multiply(const Product& p, T* out) {
  const int64_t row_blocks = (p.rows + SIDE - 1) / SIDE, panels = p.columns / SIDE;
#pragma omp parallel
  {
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    const auto longest = [all](int64_t count) { return (count + all - 1) / all; };
    if (longest(row_blocks) * panels <= longest(panels) * row_blocks) {
      const int64_t end = std::min(p.rows, SIDE * share(row_blocks, me + 1, all));
      multiply_part<gelu>(p, out, SIDE * share(row_blocks, me, all), end, 0, panels);
    } else {
      multiply_part<gelu>(p, out, 0, p.rows, share(panels, me, all), share(panels, me + 1, all));
    }
  }
}

template <typename T>
void pack(const T* weight, bf16* forward, bf16* backward, int64_t out, int64_t in) {
  const int64_t across = in / SIDE, down = out / SIDE;
#pragma omp parallel for collapse(2) schedule(static) if (down * across > kAlone)
  for (int64_t i = 0; i < down; ++i)
    for (int64_t j = 0; j < across; ++j) {
      __m512i block[SIDE];
      read_block(weight + SIDE * (i * in + j), in, SIDE, block);
      write_rows_paired(block, backward + (j * down + i) * BLOCK);
      write_columns_paired(block, forward + (i * across + j) * BLOCK);
    }
}

}  // namespace

API int gemm_available() { return tiles_granted(); }

API void gemm_pack_float(const float* weight, bf16* forward, bf16* backward, int64_t out, int64_t in) {
  pack(weight, forward, backward, out, in);
}

API void gemm_pack_bf16(const bf16* weight, bf16* forward, bf16* backward, int64_t out, int64_t in) {
  pack(weight, forward, backward, out, in);
}

API void gemm_multiply_float(const bf16* x, const bf16* weight, const float* bias, float* out, int64_t rows,
                             int64_t inner, int64_t columns) {
  multiply<false>(Product{x, weight, bias, rows, inner, columns}, out);
}

API void gemm_multiply_bf16(const bf16* x, const bf16* weight, const float* bias, bf16* out, int64_t rows,
                            int64_t inner, int64_t columns) {
  multiply<false>(Product{x, weight, bias, rows, inner, columns}, out);
}

API void gemm_multiply_both(const bf16* x, const bf16* weight, const bf16* h, const bf16* narrow_weight, bf16* out,
                            int64_t rows, int64_t inner, int64_t narrow, int64_t columns) {
  multiply<false>(Product{x, weight, nullptr, rows, inner, columns, h, narrow_weight, narrow}, out);
}

API void gemm_multiply_gelu(const bf16* x, const bf16* weight, const float* bias, bf16* out, int64_t rows, int64_t inner,
                            int64_t columns) {
  multiply<true>(Product{x, weight, bias, rows, inner, columns}, out);
}
#else
API int gemm_available() { return 0; }
#endif
