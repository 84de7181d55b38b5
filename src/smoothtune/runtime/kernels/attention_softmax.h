// Softmax and dropout between the matrix products of attention, and their gradient, on a block of scores that lies key
// by key: element (j, i) of key j and query i is at [j * QUERIES + i], so that everything runs along queries, without
// a sum across lanes. Knows nothing of how scores are made or used.
#pragma once

#include "attention_lanes.h"

namespace attention {

constexpr int QUERIES = 32;  // of a block; a block of no more than 16 leaves the second half alone
constexpr float LOG2_E = 1.44269504088896341f;

// The queries of a block: where their draws begin, how many there are, and how many keys they see.
struct Block {
  const Draws& draws;
  bool dropping;
  uint32_t first;  // number of the first query among the rows of the tensor of draws
  int64_t width;   // of that tensor
  int64_t keys;
  int queries;
  float scale;

  int groups() const { return queries > LANES ? 2 : 1; }

  // Number of each query's first word.
  Words words(int group) const {
    Words row;
    for (int i = 0; i < LANES; ++i) row[i] = first + uint32_t(group * LANES + i);
    return row * Draws::words_per_row(width);
  }
};

// The sum over keys of visit(key, drop), which is called for each; drop(x) is x without what its draws drop, not yet
// scaled up. Sums are made of 32 keys, then of these. `Products::attend` is called every few hundred cycles.
template <typename Products, typename Visit>
static inline Floats sum_keys(const Block& block, int group, const Visit& visit) {
  const Draws draws = block.draws;
  Floats total = {};
  if (!block.dropping) {
    for (int64_t begin = 0; begin < block.keys; begin += 32) {
      Floats sum = {};
      for (int64_t j = begin; j < std::min<int64_t>(begin + 32, block.keys); ++j)
        sum += visit(j, [](Floats x) { return x; });
      total += sum;
    }
    return total;
  }
  const Words words = block.words(group);
  for (int64_t begin = 0; begin < block.keys; begin += 32) {
    const int64_t many = std::min<int64_t>(LANES, block.keys - begin);
    Floats sum = {};
    for (int64_t j = 0; j < many; ++j) {
      const Words word = drawn(draws, words + uint32_t(begin / 2 + j));
      sum += visit(begin + j, [&](Floats x) { return kept(draws, word & 0xffffu, x); });
      const int64_t later = begin + j + LANES;
      if (later < block.keys) sum += visit(later, [&](Floats x) { return kept(draws, word >> 16, x); });
    }
    total += sum;
    Products::attend();
  }
  return total;
}

// What the backward needs to make the probabilities of a block's queries again: p = exp(scale * (score - largest)) *
// inverse. One number, largest * scale + log(sum), would lose the sum beside a large score.
struct Peaks {
  alignas(64) float largest[QUERIES];
  alignas(64) float inverse[QUERIES];  // 1 / the sum of the exponentials; 0: every probability of that query is zero
};

// Scores become exp(scale * (score - largest)) without what is dropped; `factors` (QUERIES) make dropped probabilities
// of these.
template <typename Products>
static inline void softmax_forward(const Block& block, float* scores, Peaks& peaks, float* factors) {
  const float scale = block.scale * LOG2_E, up = block.dropping ? block.draws.scale : 1.0f;
  for (int group = 0; group < block.groups(); ++group) {
    float* at = scores + group * LANES;
    Floats top = floats(at);
    for (int64_t j = 1; j < block.keys; ++j) top = larger(floats(at + j * QUERIES), top);
    const Floats total = sum_keys<Products>(block, group, [&](int64_t j, auto drop) {
      Floats& score = floats(at + j * QUERIES);
      const Floats e = power_of_two((score - top) * scale);
      score = drop(e);
      return e;
    });
    floats(peaks.largest + group * LANES) = top;
    floats(peaks.inverse + group * LANES) = 1.0f / total;
    floats(factors + group * LANES) = up / total;
  }
}

// Scores become dropped probabilities, and `gradients` of those the gradients of the scores before scaling, times
// scale. `whole` is room for the probabilities themselves.
template <typename Products>
static inline void softmax_backward(const Block& block, const Peaks& peaks, float* scores, float* gradients,
                                    float* whole) {
  const float scale = block.scale * LOG2_E, up = block.dropping ? block.draws.scale : 1.0f;
  for (int group = 0; group < block.groups(); ++group) {
    const int64_t shift = group * LANES;
    const Floats top = floats(peaks.largest + shift), inverse = floats(peaks.inverse + shift), raised = inverse * up;
    const Floats mean = sum_keys<Products>(block, group, [&](int64_t j, auto drop) {
      Floats &score = floats(scores + j * QUERIES + shift), &gradient = floats(gradients + j * QUERIES + shift);
      const Floats e = power_of_two((score - top) * scale), dropped = drop(e * raised), product = dropped * gradient;
      floats(whole + j * QUERIES + shift) = e * inverse;
      score = dropped;
      gradient = product;
      return product;
    });
    for (int64_t j = 0; j < block.keys; ++j) {
      Floats& gradient = floats(gradients + j * QUERIES + shift);
      gradient = (gradient - floats(whole + j * QUERIES + shift) * mean) * block.scale;
    }
  }
}

}  // namespace attention
