// Matrix products of small operands in the caches, in float32 with AVX-512 and in bfloat16 with AMX.
#pragma once
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

template <class T>
struct Buffer {
  T* data;
  explicit Buffer(int64_t n) : data(static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64))) {
    if (!data) throw std::bad_alloc();
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  operator T*() const { return data; }
};

inline int64_t rounded_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

inline void transpose_16(__m512i* rows) {  // 16 x 16 words
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; ++j) {
      t[i + j] = _mm512_shuffle_i32x4(rows[i + j], rows[i + j + 4], 0x88);
      t[i + j + 4] = _mm512_shuffle_i32x4(rows[i + j], rows[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; ++j) {
    rows[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
    rows[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
  }
}

// Calls store(row, words) for each row of 16 columns of the transpose of (rows, columns) words.
template <class Store>
void transpose_words(const void* from, int64_t rows, int64_t columns, const Store& store) {
  for (int64_t i = 0; i < rows; i += 16)
    for (int64_t j = 0; j < columns; j += 16) {
      __m512i words[16];
      for (int r = 0; r < 16; ++r) words[r] = _mm512_loadu_si512((const int32_t*)from + (i + r) * columns + j);
      transpose_16(words);
      for (int r = 0; r < 16; ++r) store(j + r, i, words[r]);
    }
}

// Products C (M, N) += A (M, K) B (K, N) in float32.
struct Float32 {
  using Item = float;
  static constexpr int64_t ROWS = 64, KEYS = 64;  // queries and keys of a block of attention
  static void start() {}
  static void stop() {}
  static __m512 load(const Item* x) { return _mm512_loadu_ps(x); }
  static void store(Item* x, __m512 v) { _mm512_storeu_ps(x, v); }
  // Columns from `i` on of two rows of a left operand (M, K), or of a right operand (K, N).
  static void store_left(Item* rows, int64_t i, int64_t columns, __m512 a, __m512 b) {
    store(rows + i, a);
    store(rows + columns + i, b);
  }
  static void store_right(Item* rows, int64_t i, int64_t columns, __m512 a, __m512 b) {
    store_left(rows, i, columns, a, b);
  }
  static constexpr int64_t right(int64_t column) { return column; }  // its place in the rows of a right operand
  // Right operand (K, N) from its rows.
  static void pack_rows(Item* to, const Item* rows, int64_t k, int64_t n) {
    std::memcpy(to, rows, k * n * sizeof(Item));
  }
  // Right operand (K, N) from its columns, rows of (N, K).
  static void pack_columns(Item* to, const Item* columns, int64_t k, int64_t n) {
    transpose(to, n, columns, k, n);
  }
  // Left operand (K, N), its rows `stride` items apart, from rows of (N, K).
  static void transpose(Item* to, int64_t stride, const Item* from, int64_t k, int64_t n) {
    transpose_words(from, n, k, [&](int64_t i, int64_t j, __m512i x) { _mm512_storeu_si512(to + i * stride + j, x); });
  }

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
  static constexpr int64_t ROWS = 128, KEYS = 64;
  struct alignas(64) Tiles { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; };
  static Tiles& before() { static thread_local Tiles tiles; return tiles; }
  // Completes what was written before: GCC does not know what `_tile_loadconfig` and `_tile_loadd` read.
  static void settle(const void* written) { asm volatile("" ::"r"(written) : "memory"); }
  static void start() {
    syscall(SYS_arch_prctl, 0x1023, 18);
    _tile_storeconfig(&before());
    Tiles tiles = {};
    tiles.palette = 1;
    for (int i = 0; i < 8; ++i) tiles.bytes[i] = 64, tiles.rows[i] = 16;
    settle(&tiles);
    _tile_loadconfig(&tiles);
    settle(&tiles);
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
  static void store_left(Item* rows, int64_t i, int64_t columns, __m512 a, __m512 b) {
    store(rows + i, a);
    store(rows + columns + i, b);
  }
  static void store_right(Item* rows, int64_t i, int64_t, __m512 a, __m512 b) {
    _mm512_storeu_si512(rows + 2 * i, interleaved(narrow(a), narrow(b)));
  }
  static constexpr int64_t right(int64_t column) { return 2 * column; }
  static void pack_rows(Item* to, const Item* rows, int64_t k, int64_t n) {
    for (int64_t i = 0; i < k; i += 2)
      for (int64_t j = 0; j < n; j += 16) {
        const __m256i a = _mm256_loadu_si256((const __m256i*)(rows + i * n + j));
        const __m256i b = _mm256_loadu_si256((const __m256i*)(rows + (i + 1) * n + j));
        _mm512_storeu_si512(to + i * n + 2 * j, interleaved(a, b));
      }
  }
  static void pack_columns(Item* to, const Item* columns, int64_t k, int64_t n) {
    transpose_words(columns, n, k / 2,
                    [&](int64_t i, int64_t j, __m512i x) { _mm512_storeu_si512(to + 2 * (i * n + j), x); });
  }
  static void transpose(Item* to, int64_t stride, const Item* from, int64_t k, int64_t n) {
    transpose_words(from, n, k / 2, [&](int64_t i, int64_t j, __m512i pairs) {
      Item* row = to + 2 * i * stride + j;
      _mm256_storeu_si256((__m256i*)row, _mm512_cvtepi32_epi16(pairs));
      _mm256_storeu_si256((__m256i*)(row + stride), _mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs, 16)));
    });
  }

  static void product(int64_t m, int64_t n, int64_t k, const Item* a, int64_t a_stride, const Item* b,
                      int64_t b_columns, float* c, int64_t c_stride, bool add) {
    settle(a);
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

// Threads of OpenMP that torch, too, runs on: further ones would compete with these, which spin while they wait.
using Team = void (*)(void (*function)(void*), void* data, unsigned num_threads, unsigned flags);
Team team = nullptr;  // `GOMP_parallel` of the library that torch has loaded

// Calls work(i) for each i below `count`, on up to `num_threads` threads, between `E::start` and `E::stop` of each.
template <class E, class Work>
void in_parallel(int64_t count, int num_threads, const Work& work) {
  struct Share {
    const Work& work;
    int64_t count;
    std::atomic<int64_t> next{0};
  } all{work, count};
  const auto share = [](void* data) {
    Share& all = *static_cast<Share*>(data);
    E::start();
    for (int64_t i; (i = all.next++) < all.count;) all.work(i);
    E::stop();
  };
  const int64_t used = std::min<int64_t>(num_threads, count);
  if (used > 1)
    team(share, &all, used, 0);
  else
    share(&all);
}

}  // namespace

extern "C" void use_team(Team threads) { team = threads; }
