// The layout of packed grids: the real cells of a batch of grids, one example after another, each its own size.
//
// A grid tensor is (cells, C) bf16 or float. Example b holds cell (i, j) at first + i * (width + 1) + j: after each row stands one
// cell of zeros, and before and after each example enough of them that the eight neighbours of a real cell are always
// at the same eight distances, zeros outside the grid. So a 3 x 3 convolution is nine shifted matrix products.
#pragma once

#include "common.h"

struct Example {
  int32_t height, width;
  int32_t first;  // a multiple of 32
  int32_t end;    // what this example owns ends here, and begins where the one before ends; a multiple of 32

  inline int64_t pitch() const { return int64_t(width) + 1; }
  inline int64_t span() const { return pitch() * height; }
};

// The first cell that example `b` owns.
static inline int64_t begins(const Example* examples, int64_t b) { return b == 0 ? 0 : examples[b - 1].end; }
