// Gradient of a weight, dW = g^T x or dW += g^T x: bf16 operands (N, out) and (N, in), float32 sums and result.
//
// Each thread owns a part of dW and packs what it needs: strips of x as a whole, g panel by panel.
#include "gemm_tiles.h"

#if TILES
namespace {

constexpr int64_t LONGEST = 16;  // blocks of tokens at a time: one panel of them fits the L1 cache
constexpr int64_t STRIP = 32;    // panels of x at a time: 1 MB with the longest, half of a core's L2 cache

struct Operand {
  const bf16* values;
  int64_t width;  // of a row
};

// Tokens [first, first + count) of both operands.
struct Tokens {
  int64_t first, count;
  int64_t steps() const { return (count + SIDE - 1) / SIDE; }
};

using Write = void(const __m512i*, bf16*);

// Block `step` of the panel of columns [32 panel, 32 panel + 32).
template <Write* write>
inline void pack_block(const Operand& from, const Tokens& tokens, int64_t step, int64_t panel, bf16* to) {
  const bf16* corner = from.values + (tokens.first + step * SIDE) * from.width + panel * SIDE;
  __m512i rows[SIDE];
  read_block(corner, from.width, tokens.count - step * SIDE, rows);
  write(rows, to + step * BLOCK);
}

// One block of dW: the panel of g stays in the L1 cache, that of x passes by.
inline void add_block(const bf16* a, const bf16* b, int64_t steps, float* dw, int64_t width, bool add) {
  add ? load_sums(dw, width) : zero_sums();
  int64_t row = 0;  // of dW; fetched while the sums are made, or the stores would wait for it
  for (int64_t s = 0; s < steps; ++s, a += BLOCK, b += BLOCK) {
    _tile_stream_loadd(6, b, 64);
    _tile_stream_loadd(7, b + HALF, 64);
    _tile_loadd(4, a, 64);
    _tile_loadd(5, a + HALF, 64);
    for (const int64_t wanted = SIDE * (s + 1) / steps; row < wanted; ++row) {
      __builtin_prefetch(dw + row * width, 1);
      __builtin_prefetch(dw + row * width + 16, 1);
    }
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  store_sums(dw, width);
}

// A rectangle of dW: rows [top, bottom) and columns [left, right), in blocks.
struct Part {
  int64_t top, bottom, left, right;
};

void gradient_chunk(const Operand& g, const Operand& x, const Tokens& tokens, float* dw, bool add, const Part& part) {
  static thread_local Buffer<bf16> strip, panel;
  const int64_t panels = part.right - part.left, steps = tokens.steps(), size = steps * BLOCK;
  bf16 *b = strip.of(panels * size), *a = panel.of(size);
  for (int64_t s = 0; s < steps; ++s)
    for (int64_t k = 0; k < panels; ++k) pack_block<write_rows_paired>(x, tokens, s, part.left + k, b + k * size);
  for (int64_t i = part.top; i < part.bottom; ++i) {
    for (int64_t s = 0; s < steps; ++s) pack_block<write_transposed>(g, tokens, s, i, a);
    Tiles::settle(a);
    for (int64_t k = 0; k < panels; ++k)
      add_block(a, b + k * size, steps, dw + SIDE * (i * x.width + part.left + k), x.width, add);
  }
}

void gradient_strip(const Operand& g, const Operand& x, int64_t count, float* dw, bool add, const Part& strip) {
  const int64_t blocks = std::max(int64_t(1), (count + SIDE - 1) / SIDE), chunks = (blocks + LONGEST - 1) / LONGEST;
  for (int64_t chunk = 0; chunk < chunks; ++chunk, add = true) {
    const int64_t first = SIDE * (blocks * chunk / chunks);
    const Tokens tokens{first, std::min(count, SIDE * (blocks * (chunk + 1) / chunks)) - first};
    gradient_chunk(g, x, tokens, dw, add, strip);
  }
}

void gradient_part(const Operand& g, const Operand& x, int64_t count, float* dw, bool add, const Part& part) {
  const int64_t across = part.right - part.left, strips = (across + STRIP - 1) / STRIP;
  Tiles tiles;
  for (int64_t s = 0; s < strips; ++s) {
    const int64_t left = part.left + across * s / strips, right = part.left + across * (s + 1) / strips;
    gradient_strip(g, x, count, dw, add, Part{part.top, part.bottom, left, right});
  }
}

}  // namespace

// `add`: dW holds what is to be added to.
API void gemm_weight_gradient(const bf16* g, const bf16* x, float* dw, int64_t tokens, int64_t out, int64_t in,
                              int add) {
#pragma omp parallel
  {
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads(), down = out / SIDE, across = in / SIDE;
    const Part part = down >= across ? Part{down * me / all, down * (me + 1) / all, 0, across}
                                     : Part{0, down, across * me / all, across * (me + 1) / all};
    gradient_part(Operand{g, out}, Operand{x, in}, tokens, dw, add != 0, part);
  }
}
#endif
