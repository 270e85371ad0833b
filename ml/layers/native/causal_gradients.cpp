// Gradients of causal attention on a CPU with AVX-512, and AMX for bfloat16; called by `causal_gradients.py`.
//
// For a block of queries and each block of keys that they see, transposed scores S = K Q^T * scale give weights
// P = exp(S - log_sum) and their gradients dP = V dO^T, and with the mean m of dP over the keys of a query
//     dV += P dO,   dS = P (dP - m),   dK += dS Q * scale,   dQ^T = K^T dS * scale.
// Transposed, P and dS are left operands as they are, and queries are the lanes of a vector.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int64_t ROWS = 128;  // queries of a block
constexpr int64_t KEYS = 64;   // keys of a block
constexpr float LOG2_E = 1.4426950408889634f;

template <class T>
struct Buffer {
  T* data;
  explicit Buffer(int64_t n) : data(static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64))) {}
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  operator T*() const { return data; }
};

const __m512i STEPS = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);

inline __m512i column(const void* base, int64_t stride) {  // 16 words, `stride` words apart
  return _mm512_i32gather_epi32(_mm512_mullo_epi32(STEPS, _mm512_set1_epi32(stride)), base, 4);
}

// Products C (M, N) += A (M, K) B (K, N) in float32.
struct Float32 {
  using Item = float;
  static void start() {}
  static void stop() {}
  static __m512 load(const Item* x) { return _mm512_loadu_ps(x); }
  static void store(Item* x, __m512 v) { _mm512_storeu_ps(x, v); }
  // Two rows of a left operand, and the same as rows of a right operand.
  static void store_pair(Item* first, Item* second, Item* right, int64_t columns, __m512 a, __m512 b) {
    store(first, a);
    store(second, b);
    if (right) store(right, a), store(right + columns, b);
  }
  // Right operand (K, N) from its rows.
  static void pack_rows(Item* to, const Item* rows, int64_t k, int64_t n) {
    std::memcpy(to, rows, k * n * sizeof(Item));
  }
  // Right operand (K, N) from its columns, rows of (N, K).
  static void pack_columns(Item* to, const Item* columns, int64_t k, int64_t n) {
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < n; j += 16) _mm512_storeu_si512(to + i * n + j, column(columns + j * k + i, k));
  }
  // Left operand (K, N) from rows of (N, K).
  static void transpose(Item* to, const Item* from, int64_t k, int64_t n) { pack_columns(to, from, k, n); }

  static void product(int64_t m, int64_t n, int64_t k, const Item* a, int64_t a_stride, const Item* b,
                      int64_t b_columns, float* c, int64_t c_stride, bool add) {
    for (int64_t j = 0; j < n; j += 32)
      for (int64_t i = 0; i < m; i += 8) {
        __m512 sums[8][2];
        for (int r = 0; r < 8; ++r)
          for (int v = 0; v < 2; ++v)
            sums[r][v] = add ? _mm512_loadu_ps(c + (i + r) * c_stride + j + 16 * v) : _mm512_setzero_ps();
        const Item* left = a + i * a_stride;
        const Item* right = b + j;
        for (int64_t p = 0; p < k; ++p) {
          const __m512 b0 = _mm512_loadu_ps(right + p * b_columns), b1 = _mm512_loadu_ps(right + p * b_columns + 16);
#pragma GCC unroll 8
          for (int r = 0; r < 8; ++r) {
            const __m512 value = _mm512_set1_ps(left[r * a_stride + p]);
            sums[r][0] = _mm512_fmadd_ps(value, b0, sums[r][0]);
            sums[r][1] = _mm512_fmadd_ps(value, b1, sums[r][1]);
          }
        }
        for (int r = 0; r < 8; ++r)
          for (int v = 0; v < 2; ++v) _mm512_storeu_ps(c + (i + r) * c_stride + j + 16 * v, sums[r][v]);
      }
  }
};

#ifdef __AMX_BF16__
// The same in bfloat16 with float32 sums. Rows of a right operand are interleaved in pairs: (K / 2, N, 2).
struct BFloat16 {
  using Item = uint16_t;
  struct alignas(64) Tiles { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; };
  static Tiles& before() { static thread_local Tiles tiles; return tiles; }
  static void start() {
    syscall(SYS_arch_prctl, 0x1023, 18);
    _tile_storeconfig(&before());
    Tiles tiles = {};
    tiles.palette = 1;
    for (int i = 0; i < 8; ++i) tiles.bytes[i] = 64, tiles.rows[i] = 16;
    _tile_loadconfig(&tiles);
  }
  static void stop() { _tile_loadconfig(&before()); }
  static __m512 load(const Item* x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16));
  }
  static __m256i narrow(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }
  static void store(Item* x, __m512 v) { _mm256_storeu_si256((__m256i*)x, narrow(v)); }
  static __m512i interleaved(__m256i a, __m256i b) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
  }
  static void store_pair(Item* first, Item* second, Item* right, int64_t, __m512 a, __m512 b) {
    const __m256i x = narrow(a), y = narrow(b);
    _mm256_storeu_si256((__m256i*)first, x);
    _mm256_storeu_si256((__m256i*)second, y);
    if (right) _mm512_storeu_si512(right, interleaved(x, y));
  }
  static void pack_rows(Item* to, const Item* rows, int64_t k, int64_t n) {
    for (int64_t i = 0; i < k; i += 2)
      for (int64_t j = 0; j < n; j += 16) {
        const __m256i a = _mm256_loadu_si256((const __m256i*)(rows + i * n + j));
        const __m256i b = _mm256_loadu_si256((const __m256i*)(rows + (i + 1) * n + j));
        _mm512_storeu_si512(to + i * n + 2 * j, interleaved(a, b));
      }
  }
  static void pack_columns(Item* to, const Item* columns, int64_t k, int64_t n) {
    for (int64_t i = 0; i < k; i += 2)
      for (int64_t j = 0; j < n; j += 16) _mm512_storeu_si512(to + i * n + 2 * j, column(columns + j * k + i, k / 2));
  }
  static void transpose(Item* to, const Item* from, int64_t k, int64_t n) {
    for (int64_t i = 0; i < k; i += 2)
      for (int64_t j = 0; j < n; j += 16) {
        const __m512i pairs = column(from + j * k + i, k / 2);
        _mm256_storeu_si256((__m256i*)(to + i * n + j), _mm512_cvtepi32_epi16(pairs));
        _mm256_storeu_si256((__m256i*)(to + (i + 1) * n + j), _mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs, 16)));
      }
  }

  static void product(int64_t m, int64_t n, int64_t k, const Item* a, int64_t a_stride, const Item* b,
                      int64_t b_columns, float* c, int64_t c_stride, bool add) {
    for (int64_t j = 0; j < n; j += 32)
      for (int64_t i = 0; i < m; i += 32) {
        float* sums = c + i * c_stride + j;
        const int64_t c_bytes = c_stride * 4, a_bytes = a_stride * 2, b_bytes = b_columns * 4;
        if (add) {
          _tile_loadd(0, sums, c_bytes);
          _tile_loadd(1, sums + 16, c_bytes);
          _tile_loadd(2, sums + 16 * c_stride, c_bytes);
          _tile_loadd(3, sums + 16 * c_stride + 16, c_bytes);
        } else {
          _tile_zero(0);
          _tile_zero(1);
          _tile_zero(2);
          _tile_zero(3);
        }
        for (int64_t p = 0; p < k; p += 32) {
          _tile_loadd(4, a + i * a_stride + p, a_bytes);
          _tile_loadd(6, b + p * b_columns + 2 * j, b_bytes);
          _tile_loadd(7, b + p * b_columns + 2 * j + 32, b_bytes);
          _tile_dpbf16ps(0, 4, 6);
          _tile_dpbf16ps(1, 4, 7);
          _tile_loadd(5, a + (i + 16) * a_stride + p, a_bytes);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, sums, c_bytes);
        _tile_stored(1, sums + 16, c_bytes);
        _tile_stored(2, sums + 16 * c_stride, c_bytes);
        _tile_stored(3, sums + 16 * c_stride + 16, c_bytes);
      }
  }
};
#endif

inline __m512 power_of_2(__m512 x, __mmask16 visible) {  // 0 below 2^-126 and where it is not visible
  const __mmask16 normal = _mm512_mask_cmp_ps_mask(visible, x, _mm512_set1_ps(-126.0f), _CMP_GT_OQ);
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
    std::atomic<int64_t> next{0};
    auto work = [&] {
      E::start();
      for (int64_t i; (i = next++) < shape.batch * shape.kv_heads;) group(i / shape.kv_heads, i % shape.kv_heads);
      E::stop();
    };
    std::vector<std::thread> others;
    for (int i = 1; i < num_threads; ++i) others.emplace_back(work);
    work();
    for (auto& other : others) other.join();
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
