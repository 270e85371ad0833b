// Heads of queries, keys and values, and what the passes of causal attention over them share.
#pragma once
#include "operands.h"

namespace {

constexpr float LOG2_E = 1.4426950408889634f;

struct Shape {
  int64_t batch, time, heads, kv_heads, size;
};

struct Strided {  // (B, N, T, D), D contiguous
  void* data;
  int64_t batch, head, time;
};

// Copies the rows (T, D) of a head, followed by rows of 0 up to `padded`.
template <class Item>
void copy_head(Item* to, const Strided& x, const Shape& shape, int64_t padded, int64_t b, int64_t n) {
  const Item* from = static_cast<const Item*>(x.data) + b * x.batch + n * x.head;
  const int64_t bytes = shape.size * sizeof(Item);
  for (int64_t t = 0; t < shape.time; ++t) std::memcpy(to + t * shape.size, from + t * x.time, bytes);
  std::memset(to + shape.time * shape.size, 0, (padded - shape.time) * bytes);
}

// Writes columns (D, columns), times `factor`, as rows `stride` items apart, of which there are `count`.
template <class E>
void write_columns(typename E::Item* to, int64_t stride, const float* from, int64_t columns, int64_t count,
                   int64_t size, const float* factors) {
  for (int64_t t = 0; t < count; t += 16)
    for (int64_t d = 0; d < size; d += 16) {
      __m512i words[16];
      const __m512 factor = _mm512_loadu_ps(factors + t);
      for (int i = 0; i < 16; ++i)
        words[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_loadu_ps(from + (d + i) * columns + t), factor));
      transpose_16(words);
      const int64_t last = std::min<int64_t>(16, count - t);
      for (int64_t i = 0; i < last; ++i) E::store(to + (t + i) * stride + d, _mm512_castsi512_ps(words[i]));
    }
}

constexpr int64_t PANEL = 32;  // queries, or keys, of which a product with masked entries reads only what is visible

// Scores (KEYS, ROWS) of keys from `s` on and queries from `r` on, where a panel of queries sees the key.
template <class E>
void visible_scores(const typename E::Item* keys, const typename E::Item* query_columns, float* scores, int64_t r,
                    int64_t s, int64_t size) {
  for (int64_t j = 0; j < E::ROWS; j += PANEL) {
    const int64_t seen = std::min(E::KEYS, r + j + PANEL - s);
    if (seen > 0)
      E::product(seen, PANEL, size, keys, size, query_columns + E::right(j), E::ROWS, scores + j, E::ROWS, false);
  }
}

// The queries of 16 adjacent ones that see a key which comes `distance` positions after the first of them.
inline __mmask16 seeing(int64_t distance) {
  return distance <= 0 ? 0xffff : distance >= 16 ? 0 : static_cast<__mmask16>(0xffff << distance);
}

inline __m512 power_of_2(__m512 x, __mmask16 visible) {  // 0 up to 2^-126 and where it is not visible, NaN of NaN
  const __mmask16 normal = _mm512_mask_cmp_ps_mask(visible, x, _mm512_set1_ps(-126.0f), _CMP_NLE_UQ);
  const __m512 whole = _mm512_roundscale_ps(x, 0);
  const __m512 r = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_set1_ps(1.5252734e-5f);
  for (float c : {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(c));
  return _mm512_maskz_scalef_ps(normal, y, whole);
}

}  // namespace
