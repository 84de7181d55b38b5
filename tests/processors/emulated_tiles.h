// AMX tiles in plain C++, for processors without a tile unit: included before a kernel's source, it takes the place of the
// compiler's intrinsics, so that the kernels for tiles run, slowly, wherever there is AVX-512 with bf16.
//
// Sums are made in the order of the instruction: pairs of products, one after another.
#pragma once

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && !defined(__AMX_BF16__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#define __AMX_BF16__ 1

namespace emulated {

struct Tile {
  uint32_t words[16][16];
};

inline Tile& tile(int number) {
  static thread_local Tile tiles[8];
  return tiles[number];
}

inline float wide(uint32_t high_half) {
  float value;
  std::memcpy(&value, &high_half, 4);
  return value;
}

inline void zero(int to) { std::memset(&tile(to), 0, sizeof(Tile)); }

inline void load(int to, const void* from, long stride) {
  for (int row = 0; row < 16; ++row) std::memcpy(tile(to).words[row], (const char*)from + row * stride, 64);
}

inline void store(int from, void* to, long stride) {
  for (int row = 0; row < 16; ++row) std::memcpy((char*)to + row * stride, tile(from).words[row], 64);
}

inline void add_products(int sums, int left, int right) {
  for (int row = 0; row < 16; ++row) {
    float line[16];
    std::memcpy(line, tile(sums).words[row], 64);
    for (int pair = 0; pair < 16; ++pair) {
      const uint32_t a = tile(left).words[row][pair], *b = tile(right).words[pair];
      for (int column = 0; column < 16; ++column) {
        line[column] += wide(a << 16) * wide(b[column] << 16);
        line[column] += wide(a & 0xffff0000u) * wide(b[column] & 0xffff0000u);
      }
    }
    std::memcpy(tile(sums).words[row], line, 64);
  }
}

}  // namespace emulated

#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_loadconfig
#undef _tile_release
#define _tile_loadd(to, from, stride) emulated::load(to, from, stride)
#define _tile_stream_loadd(to, from, stride) emulated::load(to, from, stride)
#define _tile_stored(from, to, stride) emulated::store(from, to, stride)
#define _tile_zero(to) emulated::zero(to)
#define _tile_dpbf16ps(sums, left, right) emulated::add_products(sums, left, right)
#define _tile_loadconfig(shape) ((void)(shape))
#define _tile_release() ((void)0)
#define syscall(...) 0L  // the system lends tiles to whoever asks
#endif
