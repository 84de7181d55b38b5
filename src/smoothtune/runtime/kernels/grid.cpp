// What stands between the convolutions of a packed grid: its columns, batch norm, ReLU, dropout, residual, the largest.
//
// Grids are bf16 or float (T). Batch norm is over real cells. Every pass that writes a grid writes its zeros too. Sums are made
// per example and then over examples in order, so that they do not depend on the number of threads. Knows nothing of
// convolutions.
#include "grid_numbers.h"

#if defined(__AVX512F__) && defined(__AVX512BW__)

namespace {

// Dropout's factors; rows of draws are the cells (b, i, j) of the padded grid of `height` x `padded` cells.
struct Dropped {
  Draws draws;
  bool any;
  int64_t height, padded, width;
  Pair full;  // of what is kept

  Dropped(uint64_t stream, float rate, int64_t height, int64_t padded, int64_t width)
      : draws(stream, rate), any(rate > 0.0f), height(height), padded(padded), width(width), full(draws.scale) {}

  inline Pair operator()(int64_t b, int64_t i, int64_t j, int64_t c) const {
    if (!any) return full;
    float kept[32];
    draws.factors(uint64_t((b * height + i) * padded + j), width, c / 32, kept);
    return Pair(kept);
  }
};

// Each row of cells in turn, 32 channels at a time, so that a channel's numbers stay in registers along the row.
template <typename Each>
inline void each_row(const Example& example, int64_t width, Each each) {
  for (int64_t i = 0; i < example.height; ++i)
    for (int64_t c = 0; c < width; c += 32) each(example.first + i * example.pitch(), example.width, i, c);
}

// The largest of 32 channels over a square, and which of its cells holds each, the first where they are equal.
struct Found {
  Pair values;
  __m512i low, high;
};

// Up to four cells that pooling makes one.
struct Square {
  int count = 0;
  int64_t cells[4];

  template <typename T>
  inline Found largest(const T* grid, int64_t width, int64_t c) const {
    Found best{Pair(grid + cells[0] * width + c), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int n = 1; n < count; ++n) {
      const Pair next(grid + cells[n] * width + c);
      take(best.values.low, best.low, next.low, n);
      take(best.values.high, best.high, next.high, n);
    }
    return best;
  }
  // Not-a-number is larger than any.
  static inline void take(__m512& best, __m512i& where, __m512 next, int n) {
    const __mmask16 taken = _mm512_cmp_ps_mask(next, best, _CMP_NLE_UQ) & _mm512_cmp_ps_mask(best, best, _CMP_EQ_OQ);
    best = _mm512_mask_mov_ps(best, taken, next);
    where = _mm512_mask_mov_epi32(where, taken, _mm512_set1_epi32(n));
  }
};

template <typename Each>
inline void each_square(const Example& example, Each each) {
  for (int64_t i = 0; i < example.height; i += 2)
    for (int64_t j = 0; j < example.width; j += 2) {
      Square square;
      for (int64_t y = i; y < std::min<int64_t>(i + 2, example.height); ++y)
        for (int64_t x = j; x < std::min<int64_t>(j + 2, example.width); ++x)
          square.cells[square.count++] = example.first + y * example.pitch() + x;
      each(square, i / 2, j / 2);
    }
}

template <typename Each>
inline void each_cell(const Example& example, Each each) {
  for (int64_t i = 0; i < example.height; ++i)
    for (int64_t j = 0; j < example.width; ++j) each(example.first + i * example.pitch() + j, i, j);
}

template <typename T>
void zero_around(const Example* examples, int64_t b, T* grid, int64_t width) {
  const Example& example = examples[b];
  const auto zero = [&](int64_t from, int64_t to) {
    std::memset(grid + from * width, 0, size_t(to - from) * width * sizeof(T));
  };
  zero(begins(examples, b), example.first);
  for (int64_t i = 1; i <= example.height; ++i) zero(example.first + i * example.pitch() - 1, example.first + i * example.pitch());
  zero(example.first + example.span(), example.end);
}

// `sums` (width) of `parts` (count, width).
void total(const float* parts, int64_t count, int64_t width, float* sums) {
  std::vector<double> all(width, 0.0);
  for (int64_t b = 0; b < count; ++b)
    for (int64_t c = 0; c < width; ++c) all[c] += double(parts[b * width + c]);
  std::copy(all.begin(), all.end(), sums);
}

// `columns` (cells, 32): the nine neighbours' three numbers of every real cell, [tap][channel], then 5 zeros.
// `cube` (B, 3, height, width) float.
template <typename T>
void columns_of(const Example* examples, int64_t count, const float* cube, int64_t height, int64_t width,
                T* columns) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t b = 0; b < count; ++b) {
    const Example& example = examples[b];
    zero_around(examples, b, columns, 32);
    each_cell(example, [&](int64_t cell, int64_t i, int64_t j) {
      T* line = columns + cell * 32;
      for (int tap = 0; tap < 9; ++tap) {
        const int64_t y = i + tap / 3 - 1, x = j + tap % 3 - 1;
        const bool inside = y >= 0 && x >= 0 && y < example.height && x < example.width;
        for (int64_t c = 0; c < 3; ++c)
          line[tap * 3 + c] = narrow<T>(inside ? cube[((b * 3 + c) * height + y) * width + x] : 0.0f);
      }
      std::memset(line + 27, 0, 5 * sizeof(T));
    });
  }
}

// The gradient of `cube`, all of which is written, from that of `columns`.
template <typename T>
void columns_gradient(const Example* examples, int64_t count, const T* columns, int64_t height, int64_t width,
                      float* cube) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t b = 0; b < count; ++b) {
    const Example& example = examples[b];
    float* into = cube + b * 3 * height * width;
    std::fill(into, into + 3 * height * width, 0.0f);
    each_cell(example, [&](int64_t cell, int64_t i, int64_t j) {
      for (int tap = 0; tap < 9; ++tap) {
        const int64_t y = i + tap / 3 - 1, x = j + tap % 3 - 1;
        if (y < 0 || x < 0 || y >= example.height || x >= example.width) continue;
        for (int64_t c = 0; c < 3; ++c) into[(c * height + y) * width + x] += widen(columns[cell * 32 + tap * 3 + c]);
      }
    });
  }
}

// Means and sums of squared differences from them over real cells, each (width). `parts` (count, width) is scratch.
template <typename T>
void statistics(const Example* examples, int64_t count, int64_t real, const T* y, int64_t width, float* parts,
                float* mean, float* squares) {
  const auto sum = [&](float* sums, auto term) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t b = 0; b < count; ++b) {
      std::vector<double> mine(width, 0.0);
      each_row(examples[b], width, [&](int64_t first, int64_t cells, int64_t, int64_t c) {
        Tally all(mine.data() + c);
        for (int64_t j = 0; j < cells; ++j) all.add(term(Pair(y + (first + j) * width + c), c));
      });
      std::copy(mine.begin(), mine.end(), parts + b * width);
    }
    total(parts, count, width, sums);
  };
  sum(mean, [](const Pair& x, int64_t) { return x; });
  for (int64_t c = 0; c < width; ++c) mean[c] /= float(real);
  sum(squares, [&](const Pair& x, int64_t c) {
    const Pair away = x - Pair(mean + c);
    return away * away;
  });
}

// `z` = dropout(ReLU(norm(y))) or, with `around`, ReLU(dropout(norm(y)) + around); a value that is not finite stays so.
template <typename T>
void normed(const Example* examples, int64_t count, const T* y, const float* mean, const float* scale,
            const float* bias, uint64_t stream, float rate, int64_t height, int64_t padded, const T* around,
            int64_t width, T* z) {
  const Dropped dropped(stream, rate, height, padded, width);
#pragma omp parallel for schedule(dynamic)
  for (int64_t b = 0; b < count; ++b) {
    zero_around(examples, b, z, width);
    each_row(examples[b], width, [&](int64_t first, int64_t cells, int64_t i, int64_t c) {
      const Pair means(mean + c), scales(scale + c), biases(bias + c);
      for (int64_t j = 0; j < cells; ++j) {
        const int64_t at = (first + j) * width + c;
        Pair sum = ((Pair(y + at) - means) * scales + biases) * dropped(b, i, j, c);
        if (around) sum = sum + Pair(around + at);
        sum.rectified().store(z + at);
      }
    });
  }
}

// First half of the gradient of `normed`: `sums` (2, width) of d and d * (y - mean) over real cells, d being the
// gradient at the norm's output and `g` z's. With `passed` (outer) what goes through the last ReLU is written there.
// `parts` (count, 2, width) is scratch.
template <typename T>
void normed_sums(const Example* examples, int64_t count, const T* y, const T* z, const T* g,
                 const float* mean, uint64_t stream, float rate, int64_t height, int64_t padded, int64_t width,
                 T* passed, float* parts, float* sums) {
  const Dropped dropped(stream, rate, height, padded, width);
#pragma omp parallel for schedule(dynamic)
  for (int64_t b = 0; b < count; ++b) {
    std::vector<double> mine(2 * width, 0.0);
    if (passed) zero_around(examples, b, passed, width);
    each_row(examples[b], width, [&](int64_t first, int64_t cells, int64_t i, int64_t c) {
      const Pair means(mean + c);
      Tally plain(mine.data() + c), times(mine.data() + width + c);
      for (int64_t j = 0; j < cells; ++j) {
        const int64_t at = (first + j) * width + c;
        Pair d = Pair(g + at).where_positive(Pair(z + at));
        if (passed) {
          d.store(passed + at);
          d = d * dropped(b, i, j, c);
        } else {
          d = d * dropped.full;  // what was dropped is 0 in z
        }
        plain.add(d);
        times.add(d * (Pair(y + at) - means));
      }
    });
    std::copy(mine.begin(), mine.end(), parts + b * 2 * width);
  }
  total(parts, count, 2 * width, sums);
}

// Second half: `out` = scale * (d - level - (y - mean) * slope), the gradient of y. `through` is z's gradient (inner,
// with `z`) or what `normed_sums` passed (outer, `z` null).
template <typename T>
void normed_gradient(const Example* examples, int64_t count, const T* y, const T* z, const T* through,
                     const float* mean, const float* scale, const float* level, const float* slope, uint64_t stream,
                     float rate, int64_t height, int64_t padded, int64_t width, T* out) {
  const Dropped dropped(stream, rate, height, padded, width);
#pragma omp parallel for schedule(dynamic)
  for (int64_t b = 0; b < count; ++b) {
    zero_around(examples, b, out, width);
    each_row(examples[b], width, [&](int64_t first, int64_t cells, int64_t i, int64_t c) {
      const Pair means(mean + c), scales(scale + c), levels(level + c), slopes(slope + c);
      for (int64_t j = 0; j < cells; ++j) {
        const int64_t at = (first + j) * width + c;
        Pair d(through + at);
        d = z ? d.where_positive(Pair(z + at)) * dropped.full : d * dropped(b, i, j, c);
        (scales * (d - levels - (Pair(y + at) - means) * slopes)).store(out + at);
      }
    });
  }
}

// The largest number of each channel over real cells, (B, width) float, and the cell that holds it.
template <typename T>
void largest_of(const Example* examples, int64_t count, const T* grid, int64_t width, float* most,
                int32_t* where) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t b = 0; b < count; ++b) {
    float* best = most + b * width;
    int32_t* at = where + b * width;
    const int64_t first = examples[b].first;
    for (int64_t c = 0; c < width; ++c) best[c] = widen(grid[first * width + c]);
    std::fill(at, at + width, int32_t(first));
    each_cell(examples[b], [&](int64_t cell, int64_t, int64_t) {
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        const float value = widen(grid[cell * width + c]);
        const bool taken = value > best[c] || value != value;
        best[c] = taken ? value : best[c];
        at[c] = taken ? int32_t(cell) : at[c];
      }
    });
  }
}

// The gradient of the grid (cells, width), all of which is written, from that of `largest_of`.
template <typename T>
void largest_gradient(const Example* examples, int64_t count, const float* g, const int32_t* where, int64_t width,
                      T* out) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t b = 0; b < count; ++b) {
    const int64_t from = begins(examples, b);
    std::memset(out + from * width, 0, size_t(examples[b].end - from) * width * sizeof(T));
    for (int64_t c = 0; c < width; ++c) out[where[b * width + c] * width + c] = narrow<T>(g[b * width + c]);
  }
}

// Max pooling 2 x 2, stride 2, over real cells, odd sides rounded up: `out` (B, height, padded, width), all of which
// is written, 0 where no cell is real.
template <typename T>
void halved(const Example* examples, int64_t count, const T* grid, int64_t width, int64_t height,
            int64_t padded, T* out) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t b = 0; b < count; ++b) {
    T* into = out + b * height * padded * width;
    std::memset(into, 0, size_t(height * padded * width) * sizeof(T));
    each_square(examples[b], [&](const Square& square, int64_t i, int64_t j) {
      for (int64_t c = 0; c < width; c += 32)
        square.largest(grid, width, c).values.store(into + (i * padded + j) * width + c);
    });
  }
}

// The gradient (cells, width) of the grid, all of which is written: that of a square goes to the first largest of its cells.
template <typename T>
void halved_gradient(const Example* examples, int64_t count, const T* grid, const T* g, int64_t width,
                     int64_t height, int64_t padded, T* out) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t b = 0; b < count; ++b) {
    const T* from = g + b * height * padded * width;
    zero_around(examples, b, out, width);
    each_square(examples[b], [&](const Square& square, int64_t i, int64_t j) {
      for (int64_t c = 0; c < width; c += 32) {
        const Found found = square.largest(grid, width, c);
        const Pair all(from + (i * padded + j) * width + c);
        for (int n = 0; n < square.count; ++n)
          Pair(_mm512_maskz_mov_ps(_mm512_cmpeq_epi32_mask(found.low, _mm512_set1_epi32(n)), all.low),
               _mm512_maskz_mov_ps(_mm512_cmpeq_epi32_mask(found.high, _mm512_set1_epi32(n)), all.high))
              .store(out + square.cells[n] * width + c);
      }
    });
  }
}

}  // namespace

// `narrow_type`: grids are bf16, else float.
API void grid_columns(int narrow_type, const Example* examples, int64_t count, const float* cube, int64_t height,
                      int64_t width, void* columns) {
  FOR_BOTH(columns_of(examples, count, cube, height, width, (T*)columns))
}

API void grid_columns_back(int narrow_type, const Example* examples, int64_t count, const void* columns, int64_t height,
                           int64_t width, float* cube) {
  FOR_BOTH(columns_gradient(examples, count, (const T*)columns, height, width, cube))
}

API void grid_statistics(int narrow_type, const Example* examples, int64_t count, int64_t real, const void* y,
                         int64_t width, float* parts, float* mean, float* squares) {
  FOR_BOTH(statistics(examples, count, real, (const T*)y, width, parts, mean, squares))
}

API void grid_norm(int narrow_type, const Example* examples, int64_t count, const void* y, const float* mean,
                   const float* scale, const float* bias, uint64_t stream, float rate, int64_t height, int64_t padded,
                   const void* around, int64_t width, void* z) {
  FOR_BOTH(normed(examples, count, (const T*)y, mean, scale, bias, stream, rate, height, padded, (const T*)around, width,
                  (T*)z))
}

API void grid_norm_sums(int narrow_type, const Example* examples, int64_t count, const void* y, const void* z,
                        const void* g, const float* mean, uint64_t stream, float rate, int64_t height, int64_t padded,
                        int64_t width, void* passed, float* parts, float* sums) {
  FOR_BOTH(normed_sums(examples, count, (const T*)y, (const T*)z, (const T*)g, mean, stream, rate, height, padded, width,
                       (T*)passed, parts, sums))
}

API void grid_norm_back(int narrow_type, const Example* examples, int64_t count, const void* y, const void* z,
                        const void* through, const float* mean, const float* scale, const float* level, const float* slope,
                        uint64_t stream, float rate, int64_t height, int64_t padded, int64_t width, void* out) {
  FOR_BOTH(normed_gradient(examples, count, (const T*)y, (const T*)z, (const T*)through, mean, scale, level, slope, stream,
                           rate, height, padded, width, (T*)out))
}

API void grid_largest(int narrow_type, const Example* examples, int64_t count, const void* grid, int64_t width,
                      float* largest, int32_t* where) {
  FOR_BOTH(largest_of(examples, count, (const T*)grid, width, largest, where))
}

API void grid_largest_back(int narrow_type, const Example* examples, int64_t count, const float* g, const int32_t* where,
                           int64_t width, void* out) {
  FOR_BOTH(largest_gradient(examples, count, g, where, width, (T*)out))
}

API void grid_halve(int narrow_type, const Example* examples, int64_t count, const void* grid, int64_t width,
                    int64_t height, int64_t padded, void* halves) {
  FOR_BOTH(halved(examples, count, (const T*)grid, width, height, padded, (T*)halves))
}

API void grid_halve_back(int narrow_type, const Example* examples, int64_t count, const void* grid, const void* g,
                         int64_t width, int64_t height, int64_t padded, void* out) {
  FOR_BOTH(halved_gradient(examples, count, (const T*)grid, (const T*)g, width, height, padded, (T*)out))
}

#endif
