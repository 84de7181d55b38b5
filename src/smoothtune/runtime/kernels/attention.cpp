// Self-attention with dropout on packed tokens, forward and backward. The unit of work is one head of one row; the
// probabilities are never kept: the backward makes them again from the largest score, the sum and the draws.
//
// Rows r of tokens starts[r] ... starts[r + 1] - 1; qkv (N, 3 D) T without `bias` (3 D); peaks (2, H, N):
// each query's largest score before scaling, and 1 / the sum of its exponentials.
// P = softmax(scale Q K^T), mixed = (P * factors) V. Dropout's element (r, h, i, j) is column j of row
// (r H + h) width + i of a tensor `width` wide.
#include <type_traits>

#include "attention_tiles.h"
#include "attention_vectors.h"

namespace attention {
namespace {

struct Problem {
  const int32_t* starts;
  int64_t rows, heads, size, width;
  Draws draws;
  bool dropping;

  int64_t hidden() const { return heads * size; }
  int64_t queries() const { return starts[rows] * heads; }
  int64_t units() const { return rows * heads; }
};

// One head of one row.
struct Unit {
  int64_t row, head, first, keys;

  Unit(const Problem& problem, int64_t number)
      : row(number / problem.heads),
        head(number % problem.heads),
        first(problem.starts[row]),
        keys(problem.starts[row + 1] - problem.starts[row]) {}

  Block block(const Problem& problem, int64_t first_query) const {
    const int64_t number = (row * problem.heads + head) * problem.width + first_query;
    return {problem.draws,  problem.dropping, uint32_t(number), problem.width, keys,
            int(std::min<int64_t>(QUERIES, keys - first_query)), 1.0f / std::sqrt(float(problem.size))};
  }
};

// Asks for the cache lines that will be written at the unit's end.
template <typename T>
void expect(const Problem& problem, const Unit& unit, const T* to, int64_t stride) {
  const int64_t many = std::min<int64_t>(unit.keys, 2 * QUERIES), line = 64 / int64_t(sizeof(T));
  for (int64_t t = 0; t < many; ++t)
    for (int64_t c = 0; c < problem.size; c += line) __builtin_prefetch(to + t * stride + c, 1);
}

// Where the peaks of a unit's queries lie from `first_query` on; the inverses lie `Problem::queries` further.
int64_t peaks_at(const Problem& problem, const Unit& unit, int64_t first_query) {
  return unit.head * problem.starts[problem.rows] + unit.first + first_query;
}

// Whole vectors under masks, where the processor has them: calls that copy a few bytes would be felt in short rows.
inline void store_peaks(const Peaks& from, int queries, float* to, int64_t inverses) {
#pragma omp simd
  for (int q = 0; q < QUERIES; ++q)
    if (q < queries) {
      to[q] = from.largest[q];
      to[inverses + q] = from.inverse[q];
    }
}

// Queries that are not there have probabilities of zero.
inline Peaks load_peaks(const float* from, int queries, int64_t inverses) {
  Peaks peaks;
#pragma omp simd
  for (int q = 0; q < QUERIES; ++q) {
    peaks.largest[q] = q < queries ? from[q] : 0.0f;
    peaks.inverse[q] = q < queries ? from[inverses + q] : 0.0f;
  }
  return peaks;
}

template <typename Products>
void forward_unit(const Problem& problem, const Unit& unit, const typename Products::Number* qkv, const float* bias,
                  typename Products::Number* mixed, float* peaks, Room& room) {
  const int64_t hidden = problem.hidden(), column = unit.head * problem.size;
  Products products(unit.keys, problem.size, room);
  float* scores = room.take<float>(round_up(unit.keys, QUERIES) * QUERIES);
  const auto* at = qkv + unit.first * 3 * hidden + column;
  products.read(at, at + hidden, at + 2 * hidden, 3 * hidden, bias + column, hidden);
  products.pair_values();
  expect(problem, unit, mixed + unit.first * hidden + column, hidden);
  for (int64_t i = 0; i < unit.keys; i += QUERIES) {
    const Block block = unit.block(problem, i);
    Peaks of_block;
    alignas(64) float factors[QUERIES];
    products.scores(i / QUERIES, block.groups(), scores);
    softmax_forward<Products>(block, scores, of_block, factors);
    const float* out = products.mix(block.groups(), scores);
    products.write(out, factors, block.queries, mixed + (unit.first + i) * hidden + column, hidden, nullptr);
    store_peaks(of_block, block.queries, peaks + peaks_at(problem, unit, i), problem.queries());
  }
}

// `sums` (3, hidden), zeros, takes the sums of this unit's gradients at its columns.
template <typename Products>
void backward_unit(const Problem& problem, const Unit& unit, const typename Products::Number* dmixed,
                   const typename Products::Number* qkv, const float* bias, const float* peaks,
                   typename Products::Number* dqkv, float* sums, Room& room) {
  const int64_t hidden = problem.hidden(), column = unit.head * problem.size;
  const int64_t area = round_up(unit.keys, QUERIES) * QUERIES;
  Products products(unit.keys, problem.size, room);
  float *scores = room.take<float>(area), *gradients = room.take<float>(area), *whole = room.take<float>(area);
  const auto* at = qkv + unit.first * 3 * hidden + column;
  auto* to = dqkv + unit.first * 3 * hidden + column;
  products.read(at, at + hidden, at + 2 * hidden, 3 * hidden, bias + column, hidden);
  products.read_gradient(dmixed + unit.first * hidden + column, hidden);
  for (int part = 0; part < 3; ++part) expect(problem, unit, to + part * hidden, 3 * hidden);
  sums += column;
  for (int64_t i = 0; i < unit.keys; i += QUERIES) {
    const Block block = unit.block(problem, i);
    const Peaks of_block = load_peaks(peaks + peaks_at(problem, unit, i), block.queries, problem.queries());
    products.scores(i / QUERIES, block.groups(), scores);
    products.probability_gradients(i / QUERIES, block.groups(), gradients);
    softmax_backward<Products>(block, of_block, scores, gradients, whole);
    const float* dq = products.gradients(i / QUERIES, block.groups(), scores, gradients);
    products.write(dq, nullptr, block.queries, to + i * 3 * hidden, 3 * hidden, sums);
  }
  products.write(products.dk(), nullptr, unit.keys, to + hidden, 3 * hidden, sums + hidden);
  products.write(products.dv(), nullptr, unit.keys, to + 2 * hidden, 3 * hidden, sums + 2 * hidden);
}

// Calls work(unit number, room) for all units; the threads' registers are set up by a `Setup`.
template <typename Products, typename Work>
void for_units(const Problem& problem, const Work& work) {
#pragma omp parallel
  {
    [[maybe_unused]] const typename Products::Setup setup;
    static thread_local Room room;
#pragma omp for schedule(dynamic, 4)
    for (int64_t number = 0; number < problem.units(); ++number) {
      room.clear();
      work(Unit(problem, number), room);
    }
  }
}

template <typename Products>
void forward(const Problem& problem, const typename Products::Number* qkv, const float* bias,
             typename Products::Number* mixed, float* peaks) {
  for_units<Products>(problem, [&](const Unit& unit, Room& room) {
    forward_unit<Products>(problem, unit, qkv, bias, mixed, peaks, room);
  });
}

// dbias is added up row by row in their order, whatever the number of threads.
template <typename Products>
void backward(const Problem& problem, const typename Products::Number* dmixed, const typename Products::Number* qkv,
              const float* bias, const float* peaks, typename Products::Number* dqkv, float* dbias) {
  static thread_local std::vector<float> partial;
  const int64_t wide = 3 * problem.hidden();
  partial.assign(size_t(problem.rows * wide), 0.0f);
  float* sums = partial.data();
  for_units<Products>(problem, [&](const Unit& unit, Room& room) {
    backward_unit<Products>(problem, unit, dmixed, qkv, bias, peaks, dqkv, sums + unit.row * wide, room);
  });
  std::fill(dbias, dbias + wide, 0.0f);
  for (int64_t r = 0; r < problem.rows; ++r)
#pragma omp simd
    for (int64_t c = 0; c < wide; ++c) dbias[c] += sums[r * wide + c];
}

template <typename T>
bool on_tiles() {
#ifdef ATTENTION_TILES
  return std::is_same<T, bf16>::value && tiles_granted();
#else
  return false;
#endif
}

#ifdef ATTENTION_TILES
using Bf16Products = TileProducts;
#else
using Bf16Products = VectorProducts<bf16>;
#endif

Problem problem_of(const int32_t* starts, int64_t rows, int64_t heads, int64_t size, int64_t width, float rate,
                   uint64_t stream) {
  return {starts, rows, heads, size, width, Draws(stream, rate), rate > 0.0f};
}

}  // namespace
}  // namespace attention

#define ATTENTION_OF(T, Fast, Plain)                                                                                   \
  API void attention_forward_##T(const T* qkv, const float* bias, const int32_t* starts, int64_t rows, int64_t heads,  \
                                 int64_t size, int64_t width, float rate, uint64_t stream, T* mixed, float* peaks) {   \
    const auto problem = attention::problem_of(starts, rows, heads, size, width, rate, stream);                        \
    if (attention::on_tiles<T>())                                                                                      \
      attention::forward<attention::Fast>(problem, qkv, bias, mixed, peaks);                                           \
    else                                                                                                               \
      attention::forward<attention::Plain>(problem, qkv, bias, mixed, peaks);                                          \
  }                                                                                                                    \
  API void attention_backward_##T(const T* dmixed, const T* qkv, const float* bias, const float* peaks,                \
                                  const int32_t* starts, int64_t rows, int64_t heads, int64_t size, int64_t width,     \
                                  float rate, uint64_t stream, T* dqkv, float* dbias) {                                \
    const auto problem = attention::problem_of(starts, rows, heads, size, width, rate, stream);                        \
    if (attention::on_tiles<T>())                                                                                      \
      attention::backward<attention::Fast>(problem, dmixed, qkv, bias, peaks, dqkv, dbias);                            \
    else                                                                                                               \
      attention::backward<attention::Plain>(problem, dmixed, qkv, bias, peaks, dqkv, dbias);                           \
  }

ATTENTION_OF(float, VectorProducts<float>, VectorProducts<float>)
ATTENTION_OF(bf16, Bf16Products, VectorProducts<bf16>)
