// Softmax and dropout between the matrix products of attention, and their gradient, on a block of scores that lies key
// by key: element (j, i) of key j and query i is at [j * QUERIES + i], so that everything runs along queries, without
// a sum across lanes. Knows nothing of how scores are made or used.
#pragma once

#include "attention_lanes.h"

namespace attention {

constexpr int QUERIES = 32;  // of a block; a block of no more than 16 leaves the second half alone
constexpr float NEVER = 1e30f;  // as log-sum-exp: every probability of that query is zero
constexpr float LOG2_E = 1.44269504088896341f, LN_2 = 0.693147180559945309f;

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

// Calls visit(key, drop) for every key; drop(x) is x without what its draws drop, not yet scaled up. `Products::attend`
// is called every few hundred cycles.
template <typename Products, typename Visit>
static inline void for_keys(const Block& block, int group, const Visit& visit) {
  const Draws draws = block.draws;
  if (!block.dropping) {
    for (int64_t j = 0; j < block.keys; ++j) {
      visit(j, [](Floats x) { return x; });
    }
    return;
  }
  const Words words = block.words(group);
  for (int64_t begin = 0; begin < block.keys; begin += 32) {
    const int64_t many = std::min<int64_t>(LANES, block.keys - begin);
    for (int64_t j = 0; j < many; ++j) {
      const Words word = drawn(draws, words + uint32_t(begin / 2 + j));
      visit(begin + j, [&](Floats x) { return kept(draws, word & 0xffffu, x); });
      const int64_t later = begin + j + LANES;
      if (later < block.keys) visit(later, [&](Floats x) { return kept(draws, word >> 16, x); });
    }
    Products::attend();
  }
}

// Scores become exp(scale * (score - largest)) without what is dropped; `inverse` (QUERIES) is the factor that makes
// dropped probabilities of these, `lse` (QUERIES) the log-sum-exp of the scaled scores.
template <typename Products>
static inline void softmax_forward(const Block& block, float* scores, float* lse, float* inverse) {
  const float scale = block.scale * LOG2_E, up = block.dropping ? block.draws.scale : 1.0f;
  for (int group = 0; group < block.groups(); ++group) {
    float* at = scores + group * LANES;
    Floats top = floats(at), total = {};
    for (int64_t j = 1; j < block.keys; ++j) top = larger(floats(at + j * QUERIES), top);
    const Floats base = top * scale;
    for_keys<Products>(block, group, [&](int64_t j, auto drop) {
      Floats& score = floats(at + j * QUERIES);
      const Floats e = power_of_two(score * scale - base);
      total += e;
      score = drop(e);
    });
    floats(lse + group * LANES) = top * block.scale + logarithm(total);
    floats(inverse + group * LANES) = up / total;
  }
}

// Scores become dropped probabilities, and `gradients` of those the gradients of the scores before scaling, times
// scale. `whole` is room for the probabilities themselves.
template <typename Products>
static inline void softmax_backward(const Block& block, const float* lse, float* scores, float* gradients,
                                    float* whole) {
  const float scale = block.scale * LOG2_E, up = block.dropping ? block.draws.scale : 1.0f;
  for (int group = 0; group < block.groups(); ++group) {
    const int64_t shift = group * LANES;
    const Floats base = floats(lse + shift) * LOG2_E;
    Floats mean = {};
    for_keys<Products>(block, group, [&](int64_t j, auto drop) {
      Floats &score = floats(scores + j * QUERIES + shift), &gradient = floats(gradients + j * QUERIES + shift);
      const Floats p = power_of_two(score * scale - base), dropped = drop(p * up), product = dropped * gradient;
      floats(whole + j * QUERIES + shift) = p;
      score = dropped;
      gradient = product;
      mean += product;
    });
    for (int64_t j = 0; j < block.keys; ++j) {
      Floats& gradient = floats(gradients + j * QUERIES + shift);
      gradient = (gradient - floats(whole + j * QUERIES + shift) * mean) * block.scale;
    }
  }
}

}  // namespace attention
