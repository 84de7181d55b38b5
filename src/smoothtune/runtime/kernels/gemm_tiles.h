// What the matrix products share: AMX tiles, their permission and configuration, and the layouts they read.
//
// A tile is 16 rows of 64 bytes. tdpbf16ps multiplies A (16 x 32) by B (32 x 16); B holds pairs of its rows side by
// side. Every operand is cut into 32 x 32 blocks of two tiles, 2 KB, and a panel is a run of blocks along the summed
// dimension. Sums are float32; numbers too small to be normal count as zero.
#pragma once

#include "common.h"

#if defined(__linux__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512BW__)
#define TILES 1
// GCC takes the undefined operand inside its own AVX-512 headers for a mistake of ours.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

constexpr int64_t SIDE = 32;           // rows and columns of a block
constexpr int64_t BLOCK = SIDE * SIDE;  // its elements
constexpr int64_t HALF = BLOCK / 2;     // elements of one tile

// Linux lends the tiles' registers to a process that asks.
static inline bool tiles_granted() {
  constexpr long request_permission = 0x1023, tile_data = 18;
  static const bool granted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return granted;
}

// The calling thread's tiles, configured for as long as this lives.
struct Tiles {
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    settle(&shape);
    _tile_loadconfig(&shape);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  // Tile loads do not tell the compiler what they read: all stores before this are made by then.
  static inline void settle(const void* memory) { asm volatile("" ::"r"(memory) : "memory"); }
};

// A 64-byte aligned buffer of the calling thread that only grows.
template <typename T>
struct Buffer {
  std::vector<T> room;
  T* of(int64_t elements) {
    if (int64_t(room.size()) < elements + 64) room.resize(size_t(elements + 64));
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(room.data()) + 63) & ~uintptr_t(63));
  }
};

// Tiles 0 ... 3 are the sums of a block: its upper left, upper right, lower left and lower right quarter. Rows of what
// they come from or go to are `stride` apart; without `tall` only the upper half is stored.
static inline void load_sums(const float* from, int64_t stride) {
  _tile_loadd(0, from, 4 * stride);
  _tile_loadd(1, from + 16, 4 * stride);
  _tile_loadd(2, from + 16 * stride, 4 * stride);
  _tile_loadd(3, from + 16 * stride + 16, 4 * stride);
}

static inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

template <bool tall = true>
static inline void store_sums(float* to, int64_t stride) {
  _tile_stored(0, to, 4 * stride);
  _tile_stored(1, to + 16, 4 * stride);
  if (!tall) return;
  _tile_stored(2, to + 16 * stride, 4 * stride);
  _tile_stored(3, to + 16 * stride + 16, 4 * stride);
}

static inline __m512i read_row(const bf16* row) { return _mm512_loadu_si512(row); }

static inline __m512i read_row(const float* row) {
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + 16), _mm512_loadu_ps(row));
}

// 32 rows of 32 columns; rows from `count` on are zeros.
template <typename T>
static inline void read_block(const T* from, int64_t stride, int64_t count, __m512i* rows) {
  if (count >= SIDE) {
    for (int64_t r = 0; r < SIDE; ++r) rows[r] = read_row(from + r * stride);
  } else {
    for (int64_t r = 0; r < SIDE; ++r) rows[r] = r < count ? read_row(from + r * stride) : _mm512_setzero_si512();
  }
}

static inline void transpose_words(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 16; i += 8)
    for (int j = i; j < i + 4; ++j) {
      t[j] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88);
      t[j + 4] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0xdd);
    }
  for (int j = 0; j < 8; ++j) {
    r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
    r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
  }
}

// B tiles of a block whose summed dimension runs along the columns: tile h is made of rows 16 h ... 16 h + 15.
static inline void write_columns_paired(__m512i* rows, bf16* to) {
  for (int h = 0; h < 2; ++h) {
    transpose_words(rows + 16 * h);
    for (int r = 0; r < 16; ++r) _mm512_store_si512(to + h * HALF + r * SIDE, rows[16 * h + r]);
  }
}

// B tiles of a block whose summed dimension runs along the rows: neighbouring rows are interleaved.
static inline void write_rows_paired(const __m512i* rows, bf16* to) {
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  for (int r = 0; r < 16; ++r) {
    const __m512i low = _mm512_unpacklo_epi16(rows[2 * r], rows[2 * r + 1]);
    const __m512i high = _mm512_unpackhi_epi16(rows[2 * r], rows[2 * r + 1]);
    _mm512_store_si512(to + r * SIDE, _mm512_permutex2var_epi64(low, first, high));
    _mm512_store_si512(to + HALF + r * SIDE, _mm512_permutex2var_epi64(low, second, high));
  }
}

// A tiles of a block whose summed dimension runs along the rows: its transpose.
static inline void write_transposed(const __m512i* rows, bf16* to) {
  for (int h = 0; h < 2; ++h) {
    __m512i paired[16];  // columns 8 q + 4 h ... 8 q + 4 h + 3 for q = 0 ... 3
    for (int r = 0; r < 16; ++r)
      paired[r] = h == 0 ? _mm512_unpacklo_epi16(rows[2 * r], rows[2 * r + 1])
                         : _mm512_unpackhi_epi16(rows[2 * r], rows[2 * r + 1]);
    transpose_words(paired);
    for (int c = 0; c < 16; ++c) _mm512_store_si512(to + (c / 4 * 8 + 4 * h + c % 4) * SIDE, paired[c]);
  }
}
#else
#define TILES 0
#endif
