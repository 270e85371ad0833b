// Gradients of causal attention.
//
// For a block of queries and each block of keys that they see, transposed scores S = K Q^T * scale give weights
// P = exp(S - log_sum) and their gradients dP = V dO^T, and with the mean m of dP over the keys of a query
//     dV += P dO,   dS = P (dP - m),   dK += dS Q * scale,   dQ^T = K^T dS * scale.
// Transposed, P and dS are left operands as they are, and queries are the lanes of a vector.
#pragma once
#include "heads.h"

namespace {

template <class E>
struct Backward {
  using Item = typename E::Item;
  static constexpr int64_t ROWS = E::ROWS;  // queries of a block
  static constexpr int64_t KEYS = E::KEYS;  // keys of a block
  static_assert(ROWS % KEYS == 0);
  Shape shape;
  Strided gradient, query, key, value, output;
  const float* log_sums;  // (B, N, T)
  Item *query_gradient, *key_gradient, *value_gradient;  // (B, T, N, D) and (B, T, K, D)
  float scale;

  int64_t padded() const { return rounded_up(shape.time, std::max(ROWS, KEYS)); }
  int64_t stride() const { return padded() + 32; }  // of K^T: no power of two, so that its rows differ in cache sets

  void group(int64_t b, int64_t kv) const {
    const int64_t T = padded(), D = shape.size, per_key = shape.heads / shape.kv_heads;
    Buffer<Item> k(T * D), k_left(D * stride()), v(T * D);
    Buffer<float> dk(T * D), dv(T * D);
    copy_head<Item>(k, key, shape, T, b, kv);
    copy_head<Item>(v, value, shape, T, b, kv);
    E::transpose(k_left, stride(), k, D, T);
    std::memset(dk, 0, T * D * 4);
    std::memset(dv, 0, T * D * 4);
    for (int64_t n = kv * per_key; n < (kv + 1) * per_key; ++n) head(b, n, k, k_left, v, dk, dv);
    write(key_gradient, dk, scale, b, kv);
    write(value_gradient, dv, 1.0f, b, kv);
  }

  void head(int64_t b, int64_t n, const Item* k, const Item* k_left, const Item* v, float* dk, float* dv) const {
    const int64_t T = padded(), D = shape.size;
    Buffer<Item> q(T * D), g(T * D), q_columns(ROWS * D), q_rows(ROWS * D), g_columns(ROWS * D), g_rows(ROWS * D),
        weights(KEYS * ROWS), changes(KEYS * ROWS), all_changes(T * ROWS);
    Buffer<float> scores(KEYS * ROWS), weight_gradients(KEYS * ROWS), dq(D * ROWS), log_sum(T), mean(T), scales(ROWS);
    copy_head<Item>(q, query, shape, T, b, n);
    copy_head<Item>(g, gradient, shape, T, b, n);
    means(mean, g, b, n);
    for (int64_t t = 0; t < T; ++t)
      log_sum[t] = t < shape.time ? log_sums[(b * shape.heads + n) * shape.time + t] * LOG2_E : 1e30f;
    std::fill_n(scales.data, ROWS, scale);
    for (int64_t r = 0; r < shape.time; r += ROWS) {
      E::pack_columns(q_columns, q + r * D, D, ROWS);
      E::pack_rows(q_rows, q + r * D, ROWS, D);
      E::pack_columns(g_columns, g + r * D, D, ROWS);
      E::pack_rows(g_rows, g + r * D, ROWS, D);
      for (int64_t s = 0; s < r + ROWS; s += KEYS) {
        visible_scores<E>(k + s * D, q_columns, scores, r, s, D);
        visible_scores<E>(v + s * D, g_columns, weight_gradients, r, s, D);
        weigh(scores, weight_gradients, log_sum + r, mean + r, r - s, weights, changes, all_changes + s * ROWS);
        for (int64_t c = 0; c < KEYS; c += PANEL) {
          const int64_t from = std::max<int64_t>(s + c - r, 0);  // the first query that sees a key of the panel
          const int64_t left = c * ROWS + from, found = (s + c) * D;
          E::product(PANEL, D, ROWS - from, weights + left, ROWS, g_rows + from * D, D, dv + found, D, true);
          E::product(PANEL, D, ROWS - from, changes + left, ROWS, q_rows + from * D, D, dk + found, D, true);
        }
      }
      for (int64_t j = 0; j < ROWS; j += PANEL)
        E::product(D, PANEL, r + j + PANEL, k_left, stride(), all_changes + E::right(j), ROWS, dq + j, ROWS, false);
      write_columns<E>(query_gradient + ((b * shape.time + r) * shape.heads + n) * D, shape.heads * D, dq, ROWS,
                       std::min(ROWS, shape.time - r), D, scales);
    }
  }

  // Weights and gradients of scores, each (keys, rows), from scores and gradients of weights.
  void weigh(const float* scores, const float* weight_gradients, const float* log_sum, const float* mean,
             int64_t offset, Item* weights, Item* changes, Item* right) const {
    const __m512 factor = _mm512_set1_ps(scale * LOG2_E);
    for (int64_t c = 0; c < KEYS; c += 2)
      for (int64_t r = 0; r < ROWS; r += 16) {
        const __m512 sums = _mm512_loadu_ps(log_sum + r), means = _mm512_loadu_ps(mean + r);
        __m512 weight[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, change[2] = {weight[0], weight[0]};
        for (int i = 0; i < 2 && c + i < offset + r + 16; ++i) {
          const int64_t at = (c + i) * ROWS + r;
          const __m512 score = _mm512_loadu_ps(scores + at);
          weight[i] = power_of_2(_mm512_fmsub_ps(score, factor, sums), seeing(c + i - offset - r));
          change[i] = _mm512_mul_ps(weight[i], _mm512_sub_ps(_mm512_loadu_ps(weight_gradients + at), means));
        }
        E::store_left(weights + c * ROWS, r, ROWS, weight[0], weight[1]);
        E::store_left(changes + c * ROWS, r, ROWS, change[0], change[1]);
        E::store_right(right + c * ROWS, r, ROWS, change[0], change[1]);
      }
  }

  void means(float* mean, const Item* gradients, int64_t b, int64_t n) const {  // of the gradients of the weights
    const Item* from = static_cast<const Item*>(output.data) + b * output.batch + n * output.head;
    for (int64_t t = 0; t < padded(); ++t) {
      __m512 sum = _mm512_setzero_ps();
      if (t < shape.time)
        for (int64_t d = 0; d < shape.size; d += 16)
          sum = _mm512_fmadd_ps(E::load(from + t * output.time + d), E::load(gradients + t * shape.size + d), sum);
      mean[t] = _mm512_reduce_add_ps(sum);
    }
  }

  void write(Item* to, const float* from, float factor, int64_t b, int64_t kv) const {
    for (int64_t t = 0; t < shape.time; ++t)
      for (int64_t d = 0; d < shape.size; d += 16)
        E::store(to + ((b * shape.time + t) * shape.kv_heads + kv) * shape.size + d,
                 _mm512_mul_ps(_mm512_loadu_ps(from + t * shape.size + d), _mm512_set1_ps(factor)));
  }

  void run(int num_threads) const {
    in_parallel<E>(shape.batch * shape.kv_heads, num_threads,
                   [&](int64_t i) { group(i / shape.kv_heads, i % shape.kv_heads); });
  }
};

}  // namespace
