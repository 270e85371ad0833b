// Causal attention, softmax(Q K^T scale) V over earlier keys, as in FlashAttention (Dao 2023), transposed.
//
// For a block of queries and each block of keys that they see, scores S = K Q^T scale give weights P = exp(S - m) with
// the largest score m of a query so far, and O^T = V^T P. Queries are the lanes of a vector.
#pragma once
#include "heads.h"

namespace {

template <class E>
struct Forward {
  using Item = typename E::Item;
  static constexpr int64_t ROWS = E::ROWS;  // queries of a block
  static constexpr int64_t KEYS = E::KEYS;  // keys of a block
  Shape shape;
  Strided query, key, value;
  Item* output;     // (B, T, N, D)
  float* log_sums;  // (B, N, T)
  float scale;

  int64_t padded() const { return rounded_up(shape.time, std::max(ROWS, KEYS)); }
  int64_t stride() const { return padded() + 32; }  // of V^T: no power of two, so that its rows differ in cache sets

  void group(int64_t b, int64_t kv) const {
    const int64_t T = padded(), D = shape.size, per_key = shape.heads / shape.kv_heads;
    Buffer<Item> k(T * D), v(T * D), v_left(D * stride());
    copy_head<Item>(k, key, shape, T, b, kv);
    copy_head<Item>(v, value, shape, T, b, kv);
    E::transpose(v_left, stride(), v, D, T);
    for (int64_t n = kv * per_key; n < (kv + 1) * per_key; ++n) head(b, n, k, v_left);
  }

  void head(int64_t b, int64_t n, const Item* k, const Item* v_left) const {
    const int64_t T = padded(), D = shape.size;
    Buffer<Item> q(T * D), q_columns(ROWS * D), weights(KEYS * ROWS);
    Buffer<float> scores(KEYS * ROWS), sums(ROWS), largest(ROWS), found(D * ROWS);
    copy_head<Item>(q, query, shape, T, b, n);
    for (int64_t r = 0; r < shape.time; r += ROWS) {
      E::pack_columns(q_columns, q + r * D, D, ROWS);
      for (int64_t i = 0; i < ROWS; ++i) sums[i] = 0.0f, largest[i] = -INFINITY;
      for (int64_t s = 0; s < r + ROWS; s += KEYS) {
        visible_scores<E>(k + s * D, q_columns, scores, r, s, D);
        weigh(scores, r - s, weights, sums, largest, found);
        for (int64_t j = 0; j < ROWS; j += PANEL) {
          const int64_t seen = std::min(KEYS, r + j + PANEL - s);
          if (seen > 0)
            E::product(D, PANEL, seen, v_left + s, stride(), weights + E::right(j), ROWS, found + j, ROWS, s > 0);
        }
      }
      const int64_t count = std::min(ROWS, shape.time - r);
      float* logs = log_sums + (b * shape.heads + n) * shape.time + r;
      for (int64_t i = 0; i < count; ++i) logs[i] = largest[i] / LOG2_E + std::log(sums[i]);
      for (int64_t i = 0; i < ROWS; ++i) sums[i] = 1.0f / sums[i];
      write_columns<E>(output + ((b * shape.time + r) * shape.heads + n) * D, shape.heads * D, found, ROWS, count, D,
                       sums);
    }
  }

  // Weights (keys, rows) as right operand; what was found with smaller largest scores is scaled down.
  void weigh(const float* scores, int64_t offset, Item* weights, float* sums, float* largest, float* found) const {
    const __m512 factor = _mm512_set1_ps(scale * LOG2_E), none = _mm512_set1_ps(-INFINITY);
    for (int64_t r = 0; r < ROWS; r += 16) {
      const __m512 before = _mm512_loadu_ps(largest + r);
      __m512 most = before, sum = _mm512_setzero_ps();
      const int64_t last = std::clamp<int64_t>(offset + r + 16, 0, KEYS);  // keys that any of the 16 queries sees
      for (int64_t c = 0; c < last; ++c) {
        const __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores + c * ROWS + r), factor);
        most = _mm512_mask_max_ps(most, seeing(c - offset - r), most, score);
      }
      _mm512_storeu_ps(largest + r, most);
      // Where all scores are -inf, these are weights of 0, as in torch.
      const __m512 base = _mm512_mask_mov_ps(most, _mm512_cmp_ps_mask(most, none, _CMP_EQ_OQ), _mm512_setzero_ps());
      for (int64_t c = 0; c < KEYS; c += 2) {
        __m512 weight[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int i = 0; i < 2 && c + i < last; ++i) {
          const __m512 score = _mm512_loadu_ps(scores + (c + i) * ROWS + r);
          weight[i] = power_of_2(_mm512_fmsub_ps(score, factor, base), seeing(c + i - offset - r));
          sum = _mm512_add_ps(sum, weight[i]);
        }
        E::store_right(weights + c * ROWS, r, ROWS, weight[0], weight[1]);
      }
      const __m512 change = power_of_2(_mm512_sub_ps(before, base), 0xffff);
      _mm512_storeu_ps(sums + r, _mm512_fmadd_ps(_mm512_loadu_ps(sums + r), change, sum));
      if (_mm512_cmp_ps_mask(before, none, _CMP_NEQ_UQ) && _mm512_cmp_ps_mask(before, most, _CMP_NEQ_UQ))
        for (int64_t d = 0; d < shape.size; ++d)
          _mm512_storeu_ps(found + d * ROWS + r, _mm512_mul_ps(_mm512_loadu_ps(found + d * ROWS + r), change));
    }
  }

  void run(int num_threads) const {
    in_parallel<E>(shape.batch * shape.kv_heads, num_threads,
                   [&](int64_t i) { group(i / shape.kv_heads, i % shape.kv_heads); });
  }
};

}  // namespace
