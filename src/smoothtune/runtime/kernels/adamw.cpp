// AdamW (Loshchilov and Hutter, 2019, Algorithm 2) over many tensors at once, and the norm of many gradients.
//
// All numbers are float32. Work is cut into chunks of fixed size, so that results never depend on the number of threads.
#include "common.h"

namespace {

constexpr int64_t kChunk = 1 << 14;

struct Piece {
  int64_t tensor, begin, end;
};

std::vector<Piece> pieces_of(int64_t count, const int64_t* sizes) {
  std::vector<Piece> pieces;
  for (int64_t t = 0; t < count; ++t)
    for (int64_t begin = 0; begin < sizes[t]; begin += kChunk) pieces.push_back({t, begin, std::min(sizes[t], begin + kChunk)});
  return pieces;
}

struct Rates {
  float decay;    // 1 - rate * weight decay
  float share1;   // 1 - beta1
  float beta2;
  float share2;   // 1 - beta2: taken of the float nearest to 0.999 it would be off by 1.3e-5
  float step;     // rate / (1 - beta1^t)
  float root;     // 1 / sqrt(1 - beta2^t)
  float eps;
  float scale;    // of the gradient
};

inline void update(const Rates& k, int64_t many, float* p, const float* g, float* m, float* v) {
#pragma omp simd
  for (int64_t i = 0; i < many; ++i) {
    const float gradient = g[i] * k.scale;
    const float first = m[i] + (gradient - m[i]) * k.share1;
    const float second = k.beta2 * v[i] + k.share2 * gradient * gradient;
    m[i] = first;
    v[i] = second;
    p[i] = p[i] * k.decay - k.step * first / (std::sqrt(second) * k.root + k.eps);
  }
}

inline void update_without_gradient(const Rates& k, int64_t many, float* p, float* m, float* v) {
#pragma omp simd
  for (int64_t i = 0; i < many; ++i) {
    const float first = m[i] + (0.0f - m[i]) * k.share1;
    const float second = k.beta2 * v[i];
    m[i] = first;
    v[i] = second;
    p[i] = p[i] * k.decay - k.step * first / (std::sqrt(second) * k.root + k.eps);
  }
}

}  // namespace

API void adamw_dense(int64_t count, const int64_t* sizes, float* const* p, const float* const* g, float* const* m,
                     float* const* v, float decay, float share1, float beta2, float share2, float step, float root,
                     float eps, float scale) {
  const Rates rates{decay, share1, beta2, share2, step, root, eps, scale};
  const std::vector<Piece> pieces = pieces_of(count, sizes);
#pragma omp parallel for schedule(static) if (pieces.size() > 2)
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& at = pieces[i];
    const int64_t t = at.tensor, b = at.begin;
    update(rates, at.end - b, p[t] + b, g[t] + b, m[t] + b, v[t] + b);
  }
}

// A table of (rows, width) of which few rows have a gradient: `g` (many, width) are the gradients of rows `index`, each
// row at most once. Rows that never had one (`seen` 0) have zero moments: only their decay is left to do, and nothing
// at all where there is none.
API void adamw_rows(int64_t rows, int64_t width, float* p, float* m, float* v, uint8_t* seen, int64_t many,
                    const int64_t* index, const float* g, float decay, float share1, float beta2, float share2,
                    float step, float root, float eps, float scale) {
  const Rates rates{decay, share1, beta2, share2, step, root, eps, scale};
  std::vector<int64_t> slot(rows, -1);
  for (int64_t i = 0; i < many; ++i) slot[index[i]] = i;
#pragma omp parallel for schedule(static, 64)
  for (int64_t r = 0; r < rows; ++r) {
    float* pr = p + r * width;
    if (slot[r] >= 0) {
      seen[r] = 1;
      update(rates, width, pr, g + slot[r] * width, m + r * width, v + r * width);
    } else if (seen[r]) {
      update_without_gradient(rates, width, pr, m + r * width, v + r * width);
    } else if (decay != 1.0f) {
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) pr[c] *= decay;
    }
  }
}

// The sum of squares of all gradients, in float64.
API double sum_of_squares(int64_t count, const int64_t* sizes, const float* const* g) {
  const std::vector<Piece> pieces = pieces_of(count, sizes);
  std::vector<double> sums(pieces.size());
#pragma omp parallel for schedule(static) if (pieces.size() > 2)
  for (size_t i = 0; i < pieces.size(); ++i) {
    const float* from = g[pieces[i].tensor];
    double total = 0.0;
    for (int64_t b = pieces[i].begin; b < pieces[i].end; b += 256) {
      float sum = 0.0f;
      const int64_t end = std::min(pieces[i].end, b + 256);
#pragma omp simd reduction(+ : sum)
      for (int64_t c = b; c < end; ++c) sum += from[c] * from[c];
      total += double(sum);
    }
    sums[i] = total;
  }
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}
