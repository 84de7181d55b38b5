// Gradient of a weight, dW = g^T x or dW += g^T x: bf16 operands (N, out) and (N, in), float32 sums and result.
//
// Each thread owns a part of dW and packs what it needs: the smaller operand as a whole, panel by panel the other.
#include "gemm_tiles.h"

#if TILES
namespace {

constexpr int64_t RESIDENT = 1 << 20;  // bytes of the packed smaller operand, about half of a core's L2 cache

struct Operand {
  const bf16* values;
  int64_t width;  // of a row
};

// The panel of columns [column, column + 32) for rows [first, first + count).
template <void (*write)(const __m512i*, bf16*)>
void pack_panel(const Operand& from, int64_t first, int64_t count, int64_t column, bf16* to) {
  for (int64_t n = 0; n < count; n += SIDE, to += BLOCK) {
    __m512i rows[SIDE];
    read_block(from.values + (first + n) * from.width + column, from.width, count - n, rows);
    write(rows, to);
  }
  Tiles::settle(to);
}

inline void add_block(const bf16* a, const bf16* b, int64_t steps, float* dw, int64_t width, bool add) {
  const int64_t bytes = 4 * width;
  float* below = dw + 16 * width;
  if (add) {
    _tile_loadd(0, dw, bytes);
    _tile_loadd(1, dw + 16, bytes);
    _tile_loadd(2, below, bytes);
    _tile_loadd(3, below + 16, bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t s = 0; s < steps; ++s, a += BLOCK, b += BLOCK) {
    _tile_loadd(6, b, 64);
    _tile_loadd(4, a, 64);
    _tile_loadd(7, b + HALF, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + HALF, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, dw, bytes);
  _tile_stored(1, dw + 16, bytes);
  _tile_stored(2, below, bytes);
  _tile_stored(3, below + 16, bytes);
}

// A rectangle of dW: rows [top, bottom) and columns [left, right), in blocks.
struct Part {
  int64_t top, bottom, left, right;
};

void gradient_part(const Operand& g, const Operand& x, int64_t tokens, float* dw, bool add, const Part& part) {
  static thread_local Buffer<bf16> whole, panel;
  const int64_t down = part.bottom - part.top, across = part.right - part.left;
  if (down <= 0 || across <= 0) return;
  const bool keep_x = across <= down;
  const int64_t kept = std::min(down, across);
  const int64_t blocks = (tokens + SIDE - 1) / SIDE;
  const int64_t limit = std::max(int64_t(8), RESIDENT / (2 * BLOCK * kept));
  const int64_t chunks = std::max(int64_t(1), (blocks + limit - 1) / limit);
  Tiles tiles;
  for (int64_t chunk = 0; chunk < chunks; ++chunk, add = true) {
    const int64_t first = SIDE * (blocks * chunk / chunks), end = std::min(tokens, SIDE * (blocks * (chunk + 1) / chunks));
    const int64_t count = end - first, steps = (count + SIDE - 1) / SIDE, size = steps * BLOCK;
    bf16 *all = whole.of(kept * size), *one = panel.of(size);
    if (keep_x) {
      for (int64_t j = 0; j < across; ++j)
        pack_panel<write_rows_paired>(x, first, count, SIDE * (part.left + j), all + j * size);
      for (int64_t i = part.top; i < part.bottom; ++i) {
        pack_panel<write_transposed>(g, first, count, SIDE * i, one);
        for (int64_t j = 0; j < across; ++j)
          add_block(one, all + j * size, steps, dw + SIDE * (i * x.width + part.left + j), x.width, add);
      }
    } else {
      for (int64_t i = 0; i < down; ++i)
        pack_panel<write_transposed>(g, first, count, SIDE * (part.top + i), all + i * size);
      for (int64_t j = part.left; j < part.right; ++j) {
        pack_panel<write_rows_paired>(x, first, count, SIDE * j, one);
        for (int64_t i = 0; i < down; ++i)
          add_block(all + i * size, one, steps, dw + SIDE * ((part.top + i) * x.width + j), x.width, add);
      }
    }
  }
}

}  // namespace

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
