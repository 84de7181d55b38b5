// The matrix products of attention in float32 on vectors, for any processor and number format. Knows nothing of
// softmax.
//
// One head of one row: `keys` tokens, head size d, padded in scratch to `wide` = a multiple of 16 columns.
#pragma once

#include "attention_room.h"
#include "attention_softmax.h"

namespace attention {

constexpr int STEP = 6;   // rows of C made at once
constexpr int RUN = 128;  // keys that are added up one after another: sums of sums round less

static inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// What is known where a product is made, such as that nothing is added to, is a tenth of a short row's time.
#define INLINED static inline __attribute__((always_inline))

// A matrix whose element (m, k) is at [m * row + k * depth].
struct Left {
  const float* at;
  int64_t row, depth;
};

template <int M, int N>
INLINED void product_block(Left a, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t k, bool add) {
  LooseFloats sum[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sum[m][n] = add ? *(const LooseFloats*)(c + m * ldc + n * LANES) : LooseFloats{};
  for (int64_t step = 0; step < k; ++step) {
    LooseFloats right[N];
    for (int n = 0; n < N; ++n) right[n] = *(const LooseFloats*)(b + step * ldb + n * LANES);
    for (int m = 0; m < M; ++m) {
      const float left = a.at[m * a.row + step * a.depth];
      for (int n = 0; n < N; ++n) sum[m][n] += left * right[n];
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) *(LooseFloats*)(c + m * ldc + n * LANES) = sum[m][n];
}

template <int N>
INLINED void product_rows(Left a, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t m, int64_t k, bool add) {
  int64_t row = 0;
  for (; row + STEP <= m; row += STEP)
    product_block<STEP, N>({a.at + row * a.row, a.row, a.depth}, b, ldb, c + row * ldc, ldc, k, add);
  for (; row < m; ++row) product_block<1, N>({a.at + row * a.row, a.row, a.depth}, b, ldb, c + row * ldc, ldc, k, add);
}

// C (m x n) = or += A (m x k) B (k x n); n is a multiple of 16.
INLINED void product(Left a, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t m, int64_t n, int64_t k,
                     bool add) {
  int64_t column = 0;
  for (; column + 2 * LANES <= n; column += 2 * LANES)
    product_rows<2>(a, b + column, ldb, c + column, ldc, m, k, add);
  if (column < n) product_rows<1>(a, b + column, ldb, c + column, ldc, m, k, add);
}

template <typename T>
class VectorProducts {
 public:
  using Number = T;
  struct Setup {};

  VectorProducts(int64_t keys, int64_t size, Room& room)
      : keys_(keys), size_(size), wide_(round_up(size, LANES)), blocks_(round_up(keys, QUERIES) / QUERIES) {
    for (float** matrix : {&q_, &k_, &v_, &g_, &dk_, &dv_}) *matrix = room.take<float>(blocks_ * QUERIES * wide_);
    for (float** matrix : {&q_turned_, &g_turned_}) *matrix = room.take<float>(blocks_ * QUERIES * wide_);
    for (float** matrix : {&mixed_, &partial_}) *matrix = room.take<float>(QUERIES * wide_);
  }

  static void attend() {}

  void read(const T* q, const T* k, const T* v, int64_t stride, const float* bias, int64_t bias_stride) {
    read_rows(q, stride, bias, q_);
    read_rows(k, stride, bias + bias_stride, k_);
    read_rows(v, stride, bias + 2 * bias_stride, v_);
    turn(q_, q_turned_);
  }

  void pair_values() {}

  void read_gradient(const T* g, int64_t stride) {
    read_rows(g, stride, nullptr, g_);
    turn(g_, g_turned_);
  }

  // out (keys, QUERIES) of the queries of `block`: K Q^T and V dO^T.
  void scores(int64_t block, int groups, float* out) { from_turned(k_, q_turned_, block, groups, out); }
  void probability_gradients(int64_t block, int groups, float* out) { from_turned(v_, g_turned_, block, groups, out); }

  // The mixed values (QUERIES, wide) of a block's dropped probabilities.
  const float* mix(int groups, const float* dropped) { return over_keys(groups, dropped, v_); }

  // The gradient (QUERIES, wide) of the block's queries; those of keys and values are added up in `dk` and `dv`.
  const float* gradients(int64_t block, int groups, const float* dropped, const float* ds) {
    const int64_t first = block * QUERIES, many = std::min<int64_t>(QUERIES, keys_ - first);
    product({dropped, QUERIES, 1}, g_ + first * wide_, wide_, dv_, wide_, keys_, wide_, many, block > 0);
    product({ds, QUERIES, 1}, q_ + first * wide_, wide_, dk_, wide_, keys_, wide_, many, block > 0);
    return over_keys(groups, ds, k_);
  }

  const float* dk() const { return dk_; }
  const float* dv() const { return dv_; }

  // Writes `count` rows of `from`, each times its factor if there are any, and adds their sums to `sums` if not null.
  void write(const float* from, const float* factors, int64_t count, T* to, int64_t stride, float* sums) const {
    for (int64_t t = 0; t < count; ++t) {
      const float *row = from + t * wide_, factor = factors ? factors[t] : 1.0f;
      T* out = to + t * stride;
#pragma omp simd
      for (int64_t c = 0; c < size_; ++c) out[c] = narrow<T>(row[c] * factor);
    }
    for (int64_t t = 0; sums && t < count; t += QUERIES)
      add_rows(from + t * wide_, std::min<int64_t>(QUERIES, count - t), sums);
  }

 private:
  void add_rows(const float* from, int64_t count, float* sums) const {
    std::copy(from, from + wide_, partial_);
    for (int64_t t = 1; t < count; ++t)
#pragma omp simd
      for (int64_t c = 0; c < wide_; ++c) partial_[c] += from[t * wide_ + c];
#pragma omp simd
    for (int64_t c = 0; c < size_; ++c) sums[c] += partial_[c];
  }

  void read_rows(const T* from, int64_t stride, const float* bias, float* to) const {
    for (int64_t t = 0; t < keys_; ++t) {
      const T* row = from + t * stride;
      float* out = to + t * wide_;
#pragma omp simd
      for (int64_t c = 0; c < size_; ++c) out[c] = widen(row[c]) + (bias ? bias[c] : 0.0f);
      for (int64_t c = size_; c < wide_; ++c) out[c] = 0.0f;
    }
    std::fill(to + keys_ * wide_, to + blocks_ * QUERIES * wide_, 0.0f);
  }

  // to[block][column][query] = from[block][query][column]
  void turn(const float* from, float* to) const {
    for (int64_t block = 0; block < blocks_; ++block)
      for (int64_t c = 0; c < wide_; ++c)
        for (int64_t i = 0; i < QUERIES; ++i)
          to[(block * wide_ + c) * QUERIES + i] = from[(block * QUERIES + i) * wide_ + c];
  }

  void from_turned(const float* left, const float* turned, int64_t block, int groups, float* out) const {
    const float* right = turned + block * wide_ * QUERIES;
    product({left, wide_, 1}, right, QUERIES, out, QUERIES, keys_, groups * LANES, wide_, false);
  }

  const float* over_keys(int groups, const float* left, const float* right) const {
    mix_run(groups, left, right, 0, mixed_);
    for (int64_t j = RUN; j < keys_; j += RUN) {
      mix_run(groups, left, right, j, partial_);
#pragma omp simd
      for (int64_t c = 0; c < groups * LANES * wide_; ++c) mixed_[c] += partial_[c];
    }
    return mixed_;
  }

  void mix_run(int groups, const float* left, const float* right, int64_t j, float* out) const {
    const Left run{left + j * QUERIES, 1, QUERIES};
    product(run, right + j * wide_, wide_, out, wide_, groups * LANES, wide_, std::min<int64_t>(RUN, keys_ - j), false);
  }

  int64_t keys_, size_, wide_, blocks_;
  float *q_, *k_, *v_, *g_, *dk_, *dv_, *q_turned_, *g_turned_, *mixed_, *partial_;
};

}  // namespace attention
