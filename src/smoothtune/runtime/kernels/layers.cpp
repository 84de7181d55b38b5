// The layers around the matrix products of a transformer encoder: embedding sum, residual sum with dropout and layer
// norm, activation, dropout masks. Each reads its input once and writes its output once.
//
// Sums over tokens (gradients of vectors) are made in fixed chunks of rows and added in order, so that the number of
// threads never changes a bit.
#include "activation.h"

namespace {

constexpr int64_t kChunk = 64;    // rows of one partial sum
constexpr int64_t kAlone = 8192;  // elements that one thread handles sooner than two can be woken

int64_t chunks_of(int64_t rows) { return (rows + kChunk - 1) / kChunk; }

// out[c] = sum over chunks of partial[chunk * width + c], in order.
void add_partials(const float* partial, int64_t chunks, int64_t width, float* out) {
#pragma omp parallel for schedule(static) if (chunks * width > kAlone)
  for (int64_t block = 0; block < (width + 63) / 64; ++block) {
    const int64_t begin = block * 64, end = std::min(width, begin + 64);
    for (int64_t c = begin; c < end; ++c) out[c] = 0.0f;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const float* from = partial + chunk * width;
#pragma omp simd
      for (int64_t c = begin; c < end; ++c) out[c] += from[c];
    }
  }
}

struct Row {
  float mean, rstd;
};

// Mean and 1 / sqrt(variance + eps) of z[0..width). Differences from the first number are added up, or the rounding of
// a large sum would be all the variance that a row of nearly equal numbers has; what rounding leaves is taken off after.
inline Row statistics(const float* z, int64_t width, float eps) {
  const float first = z[0];
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < width; ++c) sum += z[c] - first;
  const float mean = first + sum / float(width);
  float squares = 0.0f, off = 0.0f;
#pragma omp simd reduction(+ : squares, off)
  for (int64_t c = 0; c < width; ++c) {
    off += z[c] - mean;
    squares += (z[c] - mean) * (z[c] - mean);
  }
  off /= float(width);
  return {mean + off, 1.0f / std::sqrt(std::max(squares / float(width) - off * off, 0.0f) + eps)};
}

// z *= dropout factors of `row`.
inline void drop(const Draws& draws, uint64_t row, int64_t width, float* z) {
  float factors[32];
  for (int64_t block = 0; block * 32 < width; ++block) {
    draws.factors(row, width, block, factors);
    const int64_t many = std::min<int64_t>(32, width - block * 32);
    float* at = z + block * 32;
    if (many == 32) {
#pragma omp simd
      for (int c = 0; c < 32; ++c) at[c] *= factors[c];
    } else {
      for (int64_t c = 0; c < many; ++c) at[c] *= factors[c];
    }
  }
}

template <typename T>
void residual_norm_forward(const T* y, const float* bias, const T* x, const float* gamma, const float* beta, float eps,
                           const int64_t* places, float rate, uint64_t stream, int64_t rows, int64_t width, T* z_out,
                           T* out, float* mean, float* rstd) {
  const Draws draws(stream, rate);
#pragma omp parallel if (rows * width > kAlone)
  {
    std::vector<float> buffer(width);
    float* z = buffer.data();
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
      const T* yr = y + r * width;
      const T* xr = x + r * width;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) z[c] = widen(yr[c]) + bias[c];
      if (rate > 0) drop(draws, uint64_t(places[r]), width, z);
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) z[c] = widen(narrow<T>(z[c] + widen(xr[c])));
      const Row found = statistics(z, width, eps);
      if (z_out != nullptr) {
        T* zr = z_out + r * width;
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) zr[c] = narrow<T>(z[c]);
        mean[r] = found.mean;
        rstd[r] = found.rstd;
      }
      T* o = out + r * width;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) o[c] = narrow<T>((z[c] - found.mean) * found.rstd * gamma[c] + beta[c]);
    }
  }
}

// dz of layer norm for one row into `dz`; adds to dgamma and dbeta if they are `wanted`.
template <bool wanted, typename T>
inline void norm_backward_row(const T* dout, const T* z, const float* gamma, Row row, int64_t width, float* dz,
                              float* dgamma, float* dbeta) {
  float along = 0.0f, sum = 0.0f;
#pragma omp simd reduction(+ : along, sum)
  for (int64_t c = 0; c < width; ++c) {
    const float g = widen(dout[c]);
    const float unit = (widen(z[c]) - row.mean) * row.rstd;
    if (wanted) {
      dgamma[c] += g * unit;
      dbeta[c] += g;
    }
    const float weighted = g * gamma[c];
    dz[c] = weighted;
    sum += weighted;
    along += weighted * unit;
  }
  const float a = sum / float(width), b = along / float(width);
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    const float unit = (widen(z[c]) - row.mean) * row.rstd;
    dz[c] = (dz[c] - a - unit * b) * row.rstd;
  }
}

// dgamma and dbeta may both be missing, and dbias: nothing is added up for them.
template <typename T>
void residual_norm_backward(const T* dout, const T* z, const float* gamma, const float* mean, const float* rstd,
                            const int64_t* places, float rate, uint64_t stream, int64_t rows, int64_t width, T* dx, T* dy,
                            float* dgamma, float* dbeta, float* dbias) {
  const Draws draws(stream, rate);
  const int64_t chunks = chunks_of(rows);
  const int64_t norms = dgamma == nullptr ? 0 : 2, wanted = norms + (dbias == nullptr ? 0 : 1);
  std::vector<float> partial(size_t(wanted * chunks * width), 0.0f);
  float* const gammas = partial.data();
  float* const betas = gammas + chunks * width;
  float* const biases = gammas + norms * chunks * width;
#pragma omp parallel if (rows * width > kAlone)
  {
    std::vector<float> buffer(width);
    float* dz = buffer.data();
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      float* pb = biases + chunk * width;
      for (int64_t r = chunk * kChunk; r < std::min(rows, (chunk + 1) * kChunk); ++r) {
        const Row row{mean[r], rstd[r]};
        if (norms > 0)
          norm_backward_row<true>(dout + r * width, z + r * width, gamma, row, width, dz, gammas + chunk * width,
                                  betas + chunk * width);
        else
          norm_backward_row<false>(dout + r * width, z + r * width, gamma, row, width, dz, gammas, betas);
        T* dxr = dx + r * width;
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) dxr[c] = narrow<T>(dz[c]);
        if (rate > 0) {
          drop(draws, uint64_t(places[r]), width, dz);
          T* dyr = dy + r * width;
#pragma omp simd
          for (int64_t c = 0; c < width; ++c) dyr[c] = narrow<T>(dz[c]);
        }
        if (dbias == nullptr) continue;
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) pb[c] += dz[c];
      }
    }
  }
  if (norms > 0) add_partials(gammas, chunks, width, dgamma);
  if (norms > 0) add_partials(betas, chunks, width, dbeta);
  if (dbias != nullptr) add_partials(biases, chunks, width, dbias);
}

template <typename T>
void embed_forward(const int64_t* ids, const int64_t* within, const int64_t* segments, const float* word,
                   const float* position, const float* segment, const float* gamma, const float* beta, float eps,
                   const int64_t* places, float rate, uint64_t stream, int64_t rows, int64_t width, T* z_out, T* out,
                   float* mean, float* rstd) {
  const Draws draws(stream, rate);
#pragma omp parallel if (rows * width > kAlone)
  {
    std::vector<float> buffer(width);
    float* z = buffer.data();
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
      const float* w = word + ids[r] * width;
      const float* p = position + within[r] * width;
      const float* s = segment + (segments == nullptr ? 0 : segments[r]) * width;
      T* zr = z_out + r * width;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        zr[c] = narrow<T>(w[c] + (p[c] + s[c]));
        z[c] = widen(zr[c]);
      }
      const Row found = statistics(z, width, eps);
      mean[r] = found.mean;
      rstd[r] = found.rstd;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) z[c] = (z[c] - found.mean) * found.rstd * gamma[c] + beta[c];
      if (rate > 0) drop(draws, uint64_t(places[r]), width, z);
      T* o = out + r * width;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) o[c] = narrow<T>(z[c]);
    }
  }
}

// Gradient of the sum that is normalised, (rows, width) float, and of the norm.
template <typename T>
void embed_backward(const T* dout, const T* z, const float* gamma, const float* mean, const float* rstd,
                    const int64_t* places, float rate, uint64_t stream, int64_t rows, int64_t width, float* dz_out,
                    float* dgamma, float* dbeta) {
  const Draws draws(stream, rate);
  const int64_t chunks = chunks_of(rows);
  std::vector<float> partial(size_t(2 * chunks * width), 0.0f);
  float* const gammas = partial.data();
  float* const betas = gammas + chunks * width;
#pragma omp parallel if (rows * width > kAlone)
  {
    std::vector<float> buffer(width);
    float* g = buffer.data();
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      for (int64_t r = chunk * kChunk; r < std::min(rows, (chunk + 1) * kChunk); ++r) {
        const T* d = dout + r * width;
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) g[c] = widen(d[c]);
        if (rate > 0) drop(draws, uint64_t(places[r]), width, g);
        float* dz = dz_out + r * width;
        const T* zr = z + r * width;
        const Row row{mean[r], rstd[r]};
        float along = 0.0f, sum = 0.0f;
        float* pg = gammas + chunk * width;
        float* pb = betas + chunk * width;
#pragma omp simd reduction(+ : along, sum)
        for (int64_t c = 0; c < width; ++c) {
          const float unit = (widen(zr[c]) - row.mean) * row.rstd;
          pg[c] += g[c] * unit;
          pb[c] += g[c];
          dz[c] = g[c] * gamma[c];
          sum += dz[c];
          along += dz[c] * unit;
        }
        const float a = sum / float(width), b = along / float(width);
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) {
          const float unit = (widen(zr[c]) - row.mean) * row.rstd;
          dz[c] = (dz[c] - a - unit * b) * row.rstd;
        }
      }
    }
  }
  add_partials(gammas, chunks, width, dgamma);
  add_partials(betas, chunks, width, dbeta);
}

// The columns that whole vectors do not cover are left to the caller: how many are done.
template <typename T, int kind>
inline int64_t activation_vectors(const T* u, const float* bias, int64_t width, T* out, T* slope) {
  int64_t c = 0;
#ifdef __AVX512F__
  if (kind == 0) {
    for (; c + 16 <= width; c += 16) {
      __m512 value, change;
      gelu16(_mm512_add_ps(load16(u + c), _mm512_loadu_ps(bias + c)), value, change);
      store16(out + c, value);
      if (slope != nullptr) store16(slope + c, change);
    }
  }
#else
  (void)u, (void)bias, (void)width, (void)out, (void)slope;
#endif
  return c;
}

template <typename T, int kind>
void activation_forward(const T* u, const float* bias, int64_t rows, int64_t width, T* out, T* slope) {
#pragma omp parallel for schedule(static) if (rows * width > kAlone)
  for (int64_t r = 0; r < rows; ++r) {
    const T* ur = u + r * width;
    T* o = out + r * width;
    T* s = slope == nullptr ? nullptr : slope + r * width;
    const int64_t done = activation_vectors<T, kind>(ur, bias, width, o, s);
#pragma omp simd
    for (int64_t c = done; c < width; ++c) {
      float value, change;
      activate<kind>(widen(ur[c]) + bias[c], value, change);
      o[c] = narrow<T>(value);
      if (s != nullptr) s[c] = narrow<T>(change);
    }
  }
}

// dbias may be missing.
template <typename T>
void activation_backward(const T* dout, const T* slope, int64_t rows, int64_t width, T* du, float* dbias) {
  const int64_t chunks = chunks_of(rows);
  std::vector<float> partial(dbias == nullptr ? 0 : size_t(chunks * width), 0.0f);
#pragma omp parallel for schedule(static) if (rows * width > kAlone)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    float* pb = partial.data() + chunk * width;
    for (int64_t r = chunk * kChunk; r < std::min(rows, (chunk + 1) * kChunk); ++r) {
      const T* d = dout + r * width;
      const T* s = slope + r * width;
      T* o = du + r * width;
      if (dbias == nullptr) {
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) o[c] = narrow<T>(widen(d[c]) * widen(s[c]));
        continue;
      }
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        const float value = widen(d[c]) * widen(s[c]);
        o[c] = narrow<T>(value);
        pb[c] += value;
      }
    }
  }
  if (dbias != nullptr) add_partials(partial.data(), chunks, width, dbias);
}

template <typename T>
void activation_any(int kind, const T* u, const float* bias, int64_t rows, int64_t width, T* out, T* slope) {
  if (kind == 0) activation_forward<T, 0>(u, bias, rows, width, out, slope);
  if (kind == 1) activation_forward<T, 1>(u, bias, rows, width, out, slope);
  if (kind == 2) activation_forward<T, 2>(u, bias, rows, width, out, slope);
}

}  // namespace

API void residual_norm_forward_(int narrow_type, const void* y, const float* bias, const void* x, const float* gamma,
                                const float* beta, float eps, const int64_t* places, float rate, uint64_t stream,
                                int64_t rows, int64_t width, void* z, void* out, float* mean, float* rstd) {
  FOR_BOTH(residual_norm_forward((const T*)y, bias, (const T*)x, gamma, beta, eps, places, rate, stream, rows, width,
                                 (T*)z, (T*)out, mean, rstd))
}

API void residual_norm_backward_(int narrow_type, const void* dout, const void* z, const float* gamma, const float* mean,
                                 const float* rstd, const int64_t* places, float rate, uint64_t stream, int64_t rows,
                                 int64_t width, void* dx, void* dy, float* dgamma, float* dbeta, float* dbias) {
  FOR_BOTH(residual_norm_backward((const T*)dout, (const T*)z, gamma, mean, rstd, places, rate, stream, rows, width,
                                  (T*)dx, (T*)dy, dgamma, dbeta, dbias))
}

API void embed_forward_(int narrow_type, const int64_t* ids, const int64_t* within, const int64_t* segments,
                        const float* word, const float* position, const float* segment, const float* gamma,
                        const float* beta, float eps, const int64_t* places, float rate, uint64_t stream, int64_t rows,
                        int64_t width, void* z, void* out, float* mean, float* rstd) {
  FOR_BOTH(embed_forward(ids, within, segments, word, position, segment, gamma, beta, eps, places, rate, stream, rows,
                         width, (T*)z, (T*)out, mean, rstd))
}

API void embed_backward_(int narrow_type, const void* dout, const void* z, const float* gamma, const float* mean,
                         const float* rstd, const int64_t* places, float rate, uint64_t stream, int64_t rows,
                         int64_t width, float* dz, float* dgamma, float* dbeta) {
  FOR_BOTH(embed_backward((const T*)dout, (const T*)z, gamma, mean, rstd, places, rate, stream, rows, width, dz, dgamma,
                          dbeta))
}

API void activation_forward_(int narrow_type, int kind, const void* u, const float* bias, int64_t rows, int64_t width,
                             void* out, void* slope) {
  FOR_BOTH(activation_any<T>(kind, (const T*)u, bias, rows, width, (T*)out, (T*)slope))
}

API void activation_backward_(int narrow_type, const void* dout, const void* slope, int64_t rows, int64_t width, void* du,
                              float* dbias) {
  FOR_BOTH(activation_backward((const T*)dout, (const T*)slope, rows, width, (T*)du, dbias))
}

// into[index[r]] += rows[r] for (rows, width) floats; columns are shared among threads, so sums keep their order.
API void scatter_rows(const float* from, const int64_t* index, int64_t rows, int64_t width, float* into) {
#pragma omp parallel for schedule(static) if (rows * width > kAlone)
  for (int64_t block = 0; block < (width + 63) / 64; ++block) {
    const int64_t begin = block * 64, end = std::min(width, begin + 64);
    for (int64_t r = 0; r < rows; ++r) {
      const float* f = from + r * width;
      float* t = into + index[r] * width;
#pragma omp simd
      for (int64_t c = begin; c < end; ++c) t[c] += f[c];
    }
  }
}

// 1 where kept, else 0, for (rows, width) elements.
API void keep_mask(uint64_t stream, float rate, int64_t rows, int64_t width, uint8_t* out) {
  const Draws draws(stream, rate);
#pragma omp parallel for schedule(static) if (rows * width > kAlone)
  for (int64_t r = 0; r < rows; ++r) {
    float factors[32];
    for (int64_t block = 0; block * 32 < width; ++block) {
      draws.factors(uint64_t(r), width, block, factors);
      const int64_t many = std::min<int64_t>(32, width - block * 32);
      uint8_t* o = out + r * width + block * 32;
      for (int64_t c = 0; c < many; ++c) o[c] = factors[c] != 0.0f;
    }
  }
}
