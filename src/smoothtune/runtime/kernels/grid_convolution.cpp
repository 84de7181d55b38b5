// Convolutions 3 x 3 (or 1 x 1) over packed grids by AMX tiles: forward, gradient of the input, gradient of the weights.
//
// Channels in and out are multiples of 32. Tiles are 16 rows of 64 bytes: 16 cells x 32 channels on the left, 16 pairs of
// channels x 16 outputs on the right (VNNI), 16 x 16 float sums. Knows nothing of norms or dropout.
#include "grid.h"

API int grid_available();

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512BW__)

// GCC 12 warns of variables of its own headers that it leaves undefined on purpose.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <utility>

namespace {

constexpr int64_t TILE = 512;    // bf16 numbers in a tile
constexpr int64_t CHUNK = 1024;  // cells whose operands, with the sums, stay in the second-level cache

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles of this thread for as long as it lives; released after, as others (oneDNN) configure them their own way.
struct Tiles {
  Tiles() {
    const TileConfig config;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

// Distances, in cells, from a cell to the cell that each tap reads.
struct Taps {
  int64_t offset[9];
  int count;
  Taps(int taps, int64_t pitch) : count(taps) {
    for (int tap = 0; tap < taps; ++tap) offset[tap] = taps == 1 ? 0 : (tap / 3 - 1) * pitch + tap % 3 - 1;
  }
};

// 32 or 16 cells of the output, 32 channels of it.
template <bool TWO>
void block(const bf16* x, const Taps& taps, int64_t in, const bf16* packed, float* sums) {
  _tile_zero(0);
  _tile_zero(1);
  if (TWO) {
    _tile_zero(2);
    _tile_zero(3);
  }
  const bf16* right = packed;
  for (int tap = 0; tap < taps.count; ++tap) {
    const bf16* left = x + taps.offset[tap] * in;
    for (int64_t k = 0; k < in; k += 32, right += 2 * TILE) {
      for (int line = 0; line < 32; ++line) _mm_prefetch((const char*)(right + 8 * TILE + line * 32), _MM_HINT_T0);
      _tile_loadd(6, right, 64);
      _tile_loadd(4, left + k, in * 2);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, right + TILE, 64);
      _tile_dpbf16ps(1, 4, 7);
      if (TWO) {
        _tile_loadd(5, left + k + 16 * in, in * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, sums, 128);
  _tile_stored(1, sums + 16, 128);
  if (TWO) {
    _tile_stored(2, sums + 512, 128);
    _tile_stored(3, sums + 528, 128);
  }
}

// 32 sums to bf16, with what is added.
inline void finish(float* sums, const float* bias, const bf16* more, bf16* y) {
  if (bias) {
#pragma omp simd
    for (int64_t c = 0; c < 32; ++c) sums[c] += bias[c];
  }
  if (more) {
#pragma omp simd
    for (int64_t c = 0; c < 32; ++c) sums[c] += widen(more[c]);
  }
#pragma omp simd
  for (int64_t c = 0; c < 32; ++c) y[c] = narrow<bf16>(sums[c]);
}

// 16 x 16 words turned over their diagonal.
inline void transpose(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

// Sixteen channels of two cells, interleaved.
inline __m512i interleaved(const bf16* one, const bf16* other) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)one));
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)other));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// What the gradient of the weights reads of one chunk of cells, `from` to `to`, in the order its tiles want.
//
// `left` are tiles [cells / 32][out / 16], each 16 channels x 32 cells. `right[phase]` are rows of pairs of cells
// [in / 16][pairs][16][2], from `halo` cells before the chunk to `halo` after it; phase 1 pairs each odd cell with the next.
struct Chunk {
  int64_t cells, in, out, halo, from, to;
  bf16 *left, *right[2];

  static int64_t pairs(int64_t halo) { return CHUNK / 2 + halo; }
  static int64_t numbers(int64_t in, int64_t out, int64_t halo) { return CHUNK * out + 4 * pairs(halo) * in; }

  Chunk(int64_t cells, int64_t in, int64_t out, int64_t halo, int64_t from, bf16* space)
      : cells(cells), in(in), out(out), halo(halo), from(from), to(std::min(from + CHUNK, cells)), left(space),
        right{space + CHUNK * out, space + CHUNK * out + 2 * pairs(halo) * in} {}

  // To be called by all threads of a team.
  void fill(const bf16* g, const bf16* x, int phases) const {
#pragma omp for schedule(static) nowait
    for (int64_t k = from / 32; k < to / 32; ++k)
      for (int64_t o = 0; o < out / 16; ++o) {
        __m512i rows[16];
        const bf16* at = g + k * 32 * out + o * 16;
        for (int pair = 0; pair < 16; ++pair) rows[pair] = interleaved(at + 2 * pair * out, at + (2 * pair + 1) * out);
        transpose(rows);
        bf16* tile = left + ((k - from / 32) * (out / 16) + o) * TILE;
        for (int row = 0; row < 16; ++row) _mm512_storeu_si512(tile + row * 32, rows[row]);
      }
#pragma omp for schedule(static)
    for (int64_t pair = 0; pair < pairs(halo); ++pair) {
      const int64_t cell = from - halo + 2 * pair;
      if (cell < 0 || cell + 2 >= cells) continue;  // never read
      for (int phase = 0; phase < phases; ++phase)
        for (int64_t i = 0; i < in / 16; ++i) {
          const bf16* one = x + (cell + phase) * in + 16 * i;
          _mm512_storeu_si512(right[phase] + (i * pairs(halo) + pair) * 32, interleaved(one, one + in));
        }
    }
  }
};

// Adds one chunk to 32 outputs x 32 inputs of one tap, `sums` (4 tiles of floats).
void accumulate(const Chunk& chunk, const Example* examples, int64_t count, int taps, int tap, int64_t o, int64_t i,
                float* sums) {
  _tile_loadd(0, sums, 64);
  _tile_loadd(1, sums + 256, 64);
  _tile_loadd(2, sums + 512, 64);
  _tile_loadd(3, sums + 768, 64);
  const int64_t pairs = Chunk::pairs(chunk.halo);
  for (int64_t b = 0; b < count && examples[b].first < chunk.to; ++b) {
    const Example& example = examples[b];
    const int64_t last = std::min(chunk.to, example.first + example.span());
    const int64_t offset = Taps(taps, example.pitch()).offset[tap] - chunk.from + chunk.halo;
    const bf16* right = chunk.right[offset & 1] + 2 * i * pairs * 32;
    for (int64_t k = std::max(chunk.from, int64_t(example.first)); k < last; k += 32) {
      const bf16* left = chunk.left + ((k - chunk.from) / 32 * (chunk.out / 16) + 2 * o) * TILE;
      const bf16* beside = right + ((k + offset) >> 1) * 32;
      _tile_loadd(4, left, 64);
      _tile_loadd(6, beside, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, beside + pairs * 32, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, left + TILE, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
}

// Even, and no less than the distance to any neighbour.
int64_t halo_of(const Example* examples, int64_t count) {
  int64_t widest = 0;
  for (int64_t b = 0; b < count; ++b) widest = std::max(widest, examples[b].pitch());
  return (widest + 3) / 2 * 2;
}

}  // namespace

API int grid_available() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

// `weight` (out, in, taps) float to right tiles [out / 32][taps][in / 32][2]. `backward`: those that take a gradient of
// the output (cells, out) to one of the input: inputs and outputs change places, taps their order.
API void grid_pack(const float* weight, int64_t out, int64_t in, int64_t taps, int backward, bf16* packed) {
  const int64_t depth = (backward ? out : in) / 32;
#pragma omp parallel
  {
    std::vector<bf16> row(size_t(in * taps));  // [taps][in]
#pragma omp for schedule(static)
    for (int64_t o = 0; o < out; ++o) {
      const float* from = weight + o * in * taps;
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t i = 0; i < in; ++i) row[size_t(tap * in + i)] = narrow<bf16>(from[i * taps + tap]);
      for (int64_t tap = 0; tap < taps; ++tap) {
        const bf16* line = row.data() + tap * in;
        if (backward) {
          const int64_t slot = taps - 1 - tap;
          for (int64_t i = 0; i < in; ++i) {
            bf16* tile = packed + (((i / 32) * taps + slot) * depth + o / 32) * 2 * TILE + i % 32 / 16 * TILE;
            tile[o % 32 / 2 * 32 + i % 16 * 2 + o % 2] = line[i];
          }
        } else {
          bf16* tiles = packed + ((o / 32) * taps + tap) * depth * 2 * TILE + o % 32 / 16 * TILE + o % 16 * 2;
          for (int64_t i = 0; i < in; i += 2)
            std::memcpy(tiles + i / 32 * 2 * TILE + i % 32 / 2 * 32, line + i, 4);
        }
      }
    }
  }
}

// `y` (cells, out) of `x` (cells, in), whose cells that are not real hold zeros; what `y` holds there means nothing.
// `bias` (out) and `more` (cells, out), unless null, are added.
API void grid_convolve(const Example* examples, int64_t count, const bf16* x, const bf16* packed, const float* bias,
                       const bf16* more, bf16* y, int64_t taps, int64_t in, int64_t out) {
  std::vector<std::pair<int32_t, int32_t>> blocks;
  for (int64_t b = 0; b < count; ++b)
    for (int64_t k = 0; k < examples[b].span(); k += 32) blocks.emplace_back(int32_t(b), int32_t(k));
#pragma omp parallel
  {
    const Tiles tiles;
    alignas(64) float sums[1024];
#pragma omp for schedule(static)
    for (size_t number = 0; number < blocks.size(); ++number) {
      const Example& example = examples[blocks[number].first];
      const Taps reads(int(taps), example.pitch());
      const int64_t left = example.span() - blocks[number].second, cell = example.first + blocks[number].second;
      for (int64_t o = 0; o < out / 32; ++o) {
        const bf16* right = packed + o * taps * (in / 32) * 2 * TILE;
        left > 16 ? block<true>(x + cell * in, reads, in, right, sums)
                  : block<false>(x + cell * in, reads, in, right, sums);
        for (int64_t row = 0; row < (left > 16 ? 32 : 16); ++row)
          finish(sums + row * 32, bias ? bias + o * 32 : nullptr, more ? more + (cell + row) * out + o * 32 : nullptr,
                 y + (cell + row) * out + o * 32);
      }
    }
  }
}

// Bytes that `grid_weight_gradient` works in.
API int64_t grid_workspace(const Example* examples, int64_t count, int64_t taps, int64_t in, int64_t out) {
  return Chunk::numbers(in, out, halo_of(examples, count)) * 2 + taps * in * out * 4;
}

// `gradient` (out, in, taps) float from `g` (cells, out), zero where cells are not real, and `x` (cells, in).
API void grid_weight_gradient(const Example* examples, int64_t count, int64_t cells, const bf16* g, const bf16* x,
                              bf16* workspace, float* gradient, int64_t taps, int64_t in, int64_t out) {
  const int64_t halo = halo_of(examples, count), depth = in / 32;
  float* sums = reinterpret_cast<float*>(workspace + Chunk::numbers(in, out, halo));
#pragma omp parallel
  {
    const Tiles tiles;
#pragma omp for schedule(static)
    for (int64_t part = 0; part < out / 32 * depth; ++part)
      std::fill(sums + part * taps * 1024, sums + (part + 1) * taps * 1024, 0.0f);
    for (int64_t from = 0; from < cells; from += CHUNK) {
      const Chunk chunk(cells, in, out, halo, from, workspace);
      chunk.fill(g, x, taps > 1 ? 2 : 1);
#pragma omp for schedule(static)
      for (int64_t part = 0; part < out / 32 * depth; ++part)
        for (int tap = 0; tap < taps; ++tap)
          accumulate(chunk, examples, count, int(taps), tap, part / depth, part % depth, sums + (part * taps + tap) * 1024);
    }
#pragma omp for schedule(static)
    for (int64_t part = 0; part < out / 32 * depth; ++part)
      for (int64_t a = 0; a < 32; ++a)
        for (int64_t c = 0; c < 32; ++c)
          for (int64_t tap = 0; tap < taps; ++tap)
            gradient[((part / depth * 32 + a) * in + part % depth * 32 + c) * taps + tap] =
                sums[(part * taps + tap) * 1024 + (a / 16 * 2 + c / 16) * 256 + a % 16 * 16 + c % 16];
  }
}

#else

API int grid_available() { return 0; }
API void grid_pack(const float*, int64_t, int64_t, int64_t, int, bf16*) {}
API void grid_convolve(const Example*, int64_t, const bf16*, const bf16*, const float*, const bf16*, bf16*, int64_t, int64_t,
                       int64_t) {}
API int64_t grid_workspace(const Example*, int64_t, int64_t, int64_t, int64_t) { return 0; }
API void grid_weight_gradient(const Example*, int64_t, int64_t, const bf16*, const bf16*, bf16*, float*, int64_t,
                              int64_t, int64_t) {}

#endif
