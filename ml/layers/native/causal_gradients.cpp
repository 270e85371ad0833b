// Gradients of causal attention on a CPU with AVX-512, and AMX for bfloat16; called by `causal_gradients.py`.
//
// For a block of queries and each block of keys that they see, transposed scores S = K Q^T * scale give weights
// P = exp(S - log_sum) and their gradients dP = V dO^T, and with the mean m of dP over the keys of a query
//     dV += P dO,   dS = P (dP - m),   dK += dS Q * scale,   dQ^T = K^T dS * scale.
// Transposed, P and dS are left operands as they are, and queries are the lanes of a vector.
#include "operands.h"

namespace {

constexpr int64_t ROWS = 128;  // queries of a block
constexpr int64_t KEYS = 64;   // keys of a block
constexpr float LOG2_E = 1.4426950408889634f;

inline __m512 power_of_2(__m512 x, __mmask16 visible) {  // 0 up to 2^-126 and where it is not visible, NaN of NaN
  const __mmask16 normal = _mm512_mask_cmp_ps_mask(visible, x, _mm512_set1_ps(-126.0f), _CMP_NLE_UQ);
  const __m512 whole = _mm512_roundscale_ps(x, 0);
  const __m512 r = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_set1_ps(1.5252734e-5f);
  for (float c : {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(c));
  return _mm512_maskz_scalef_ps(normal, y, whole);
}

struct Shape {
  int64_t batch, time, heads, kv_heads, size;
};

struct Strided {  // (B, N, T, D), D contiguous
  void* data;
  int64_t batch, head, time;
};

template <class E>
struct Backward {
  using Item = typename E::Item;
  Shape shape;
  Strided gradient, query, key, value, output;
  const float* log_sums;  // (B, N, T)
  Item *query_gradient, *key_gradient, *value_gradient;  // (B, T, N, D) and (B, T, K, D)
  float scale;

  int64_t padded() const { return (shape.time + ROWS - 1) / ROWS * ROWS; }

  void rows(Item* to, const Strided& x, int64_t b, int64_t n) const {  // (T, D), padded by 0
    const Item* from = static_cast<const Item*>(x.data) + b * x.batch + n * x.head;
    const int64_t bytes = shape.size * sizeof(Item);
    for (int64_t t = 0; t < shape.time; ++t) std::memcpy(to + t * shape.size, from + t * x.time, bytes);
    std::memset(to + shape.time * shape.size, 0, (padded() - shape.time) * bytes);
  }

  void group(int64_t b, int64_t kv) const {
    const int64_t T = padded(), D = shape.size, per_key = shape.heads / shape.kv_heads;
    Buffer<Item> k(T * D), k_left(T * D), v(T * D);
    Buffer<float> dk(T * D), dv(T * D);
    rows(k, key, b, kv);
    rows(v, value, b, kv);
    E::transpose(k_left, k, D, T);
    std::memset(dk, 0, T * D * 4);
    std::memset(dv, 0, T * D * 4);
    for (int64_t n = kv * per_key; n < (kv + 1) * per_key; ++n) head(b, n, k, k_left, v, dk, dv);
    write(key_gradient, dk, scale, b, kv);
    write(value_gradient, dv, 1.0f, b, kv);
  }

  void head(int64_t b, int64_t n, const Item* k, const Item* k_left, const Item* v, float* dk, float* dv) const {
    const int64_t T = padded(), D = shape.size;
    Buffer<Item> plain(T * D), q_columns(T * D), q_rows(T * D), g_columns(T * D), g_rows(T * D), weights(KEYS * ROWS),
        changes(KEYS * ROWS), all_changes(T * ROWS);
    Buffer<float> scores(KEYS * ROWS), weight_gradients(KEYS * ROWS), dq(D * ROWS), log_sum(T), mean(T);
    rows(plain, query, b, n);
    E::pack_rows(q_rows, plain, T, D);
    for (int64_t r = 0; r < T; r += ROWS) E::pack_columns(q_columns + r * D, plain + r * D, D, ROWS);
    rows(plain, gradient, b, n);
    E::pack_rows(g_rows, plain, T, D);
    for (int64_t r = 0; r < T; r += ROWS) E::pack_columns(g_columns + r * D, plain + r * D, D, ROWS);
    means(mean, plain, b, n);
    for (int64_t t = 0; t < T; ++t)
      log_sum[t] = t < shape.time ? log_sums[(b * shape.heads + n) * shape.time + t] * LOG2_E : 1e30f;
    for (int64_t r = 0; r < T; r += ROWS) {
      const int64_t end = r + ROWS;
      for (int64_t s = 0; s < end; s += KEYS) {
        E::product(KEYS, ROWS, D, k + s * D, D, q_columns + r * D, ROWS, scores, ROWS, false);
        E::product(KEYS, ROWS, D, v + s * D, D, g_columns + r * D, ROWS, weight_gradients, ROWS, false);
        weigh(scores, weight_gradients, log_sum + r, mean + r, r - s, weights, changes, all_changes + s * ROWS);
        E::product(KEYS, D, ROWS, weights, ROWS, g_rows + r * D, D, dv + s * D, D, true);
        E::product(KEYS, D, ROWS, changes, ROWS, q_rows + r * D, D, dk + s * D, D, true);
      }
      E::product(D, ROWS, end, k_left, T, all_changes, ROWS, dq, ROWS, false);
      const int64_t last = std::min(end, shape.time);
      Item* to = query_gradient + ((b * shape.time + r) * shape.heads + n) * D;
      for (int64_t t = r; t < last; ++t, to += shape.heads * D)
        for (int64_t d = 0; d < D; d += 16) {
          const __m512 sums = _mm512_castsi512_ps(column(dq + d * ROWS + t - r, ROWS));
          E::store(to + d, _mm512_mul_ps(sums, _mm512_set1_ps(scale)));
        }
    }
  }

  // Weights and gradients of scores, each (keys, rows), from scores and gradients of weights.
  void weigh(const float* scores, const float* weight_gradients, const float* log_sum, const float* mean,
             int64_t offset, Item* weights, Item* changes, Item* right) const {
    const __m512 factor = _mm512_set1_ps(scale * LOG2_E);
    for (int64_t c = 0; c < KEYS; c += 2)
      for (int64_t r = 0; r < ROWS; r += 16) {
        const __m512 sums = _mm512_loadu_ps(log_sum + r), means = _mm512_loadu_ps(mean + r);
        __m512 weight[2], change[2];
        for (int i = 0; i < 2; ++i) {
          const int64_t at = (c + i) * ROWS + r, hidden = c + i - offset - r;  // rows that do not see the key
          const __mmask16 visible = hidden <= 0 ? 0xffff : hidden >= 16 ? 0 : static_cast<__mmask16>(0xffff << hidden);
          weight[i] = power_of_2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + at), factor, sums), visible);
          change[i] = _mm512_mul_ps(weight[i], _mm512_sub_ps(_mm512_loadu_ps(weight_gradients + at), means));
        }
        E::store_pair(weights + c * ROWS + r, weights + (c + 1) * ROWS + r, nullptr, ROWS, weight[0], weight[1]);
        Item* both = right + c * ROWS + (sizeof(Item) == 2 ? 2 * r : r);
        E::store_pair(changes + c * ROWS + r, changes + (c + 1) * ROWS + r, both, ROWS, change[0], change[1]);
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

template <class E>
void backward(const Shape& shape, const Strided* in, const float* log_sums, void** out, float scale, int num_threads) {
  using Item = typename E::Item;
  Item* found[] = {(Item*)out[0], (Item*)out[1], (Item*)out[2]};
  Backward<E>{shape, in[0], in[1], in[2], in[3], in[4], log_sums, found[0], found[1], found[2], scale}.run(num_threads);
}

}  // namespace

extern "C" void causal_attention_backward(int is_half, const Shape* shape, const Strided* in, const float* log_sums,
                                          void** out, float scale, int num_threads) {
#ifdef __AMX_BF16__
  if (is_half) return backward<BFloat16>(*shape, in, log_sums, out, scale, num_threads);
#endif
  backward<Float32>(*shape, in, log_sums, out, scale, num_threads);
}
