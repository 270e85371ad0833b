// Gradient of the weight of a linear layer in bfloat16, dW (O, I) = G^T X in float32, with AMX; called by
// `weight_gradient.py`. Each operand is rearranged block by block in the caches, where G^T, too, is cheap to read.
#include "operands.h"

#ifdef __AMX_BF16__
namespace {

constexpr int64_t OUTPUTS = 256;  // rows of dW of a block
constexpr int64_t INPUTS = 512;   // columns of dW of a block
constexpr int64_t TOKENS = 256;   // of a block of the sum
constexpr int64_t PANEL = 32;     // columns that a product computes together
constexpr int64_t STRIDE = TOKENS + 32;  // of the left operand: no power of two, so that its rows differ in cache sets

using Item = BFloat16::Item;

// A panel of X as right operand, (tokens / 2, PANEL, 2), padded by 0.
void pack(Item* to, const Item* x, int64_t num_tokens, int64_t padded, int64_t inputs) {
  const __m256i zero = _mm256_setzero_si256();
  for (int64_t t = 0; t < padded; t += 2, to += 2 * PANEL)
    for (int64_t i = 0; i < PANEL; i += 16) {
      const Item* from = x + t * inputs + i;
      const __m256i a = t < num_tokens ? _mm256_loadu_si256((const __m256i*)from) : zero;
      const __m256i b = t + 1 < num_tokens ? _mm256_loadu_si256((const __m256i*)(from + inputs)) : zero;
      _mm512_storeu_si512(to + 2 * i, BFloat16::interleaved(a, b));
    }
}

// Rows of G^T, (outputs, STRIDE), from G (tokens, outputs of the layer), padded by 0 to `padded` tokens.
void transpose(Item* to, const Item* g, int64_t outputs, int64_t num_tokens, int64_t padded, int64_t stride) {
  for (int64_t t = 0; t < padded; t += 16)
    for (int64_t o = 0; o < outputs; o += 32) {
      __m512i pairs[16];  // of adjacent outputs: a row for each token, transposed a row for each pair
      for (int i = 0; i < 16; ++i)
        pairs[i] = t + i < num_tokens ? _mm512_loadu_si512(g + (t + i) * stride + o) : _mm512_setzero_si512();
      for (int i = 0; i < 16; ++i) _mm_prefetch((const char*)(g + (t + i + 16) * stride + o), _MM_HINT_T0);
      transpose_16(pairs);
      for (int i = 0; i < 16; ++i) {
        Item* row = to + (o + 2 * i) * STRIDE + t;
        _mm256_storeu_si256((__m256i*)row, _mm512_cvtepi32_epi16(pairs[i]));
        _mm256_storeu_si256((__m256i*)(row + STRIDE), _mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs[i], 16)));
      }
    }
}

}  // namespace

extern "C" void weight_gradient(const Item* g, const Item* x, float* found, int64_t num_tokens, int64_t outputs,
                                int64_t inputs, int num_threads) {
  const int64_t padded = rounded_up(num_tokens, 32);
  Buffer<Item> right(padded * inputs);
  in_parallel<BFloat16>(inputs / PANEL, num_threads, [&](int64_t panel) {
    pack(right + panel * PANEL * padded, x + panel * PANEL, num_tokens, padded, inputs);
  });
  const int64_t across = rounded_up(inputs, INPUTS) / INPUTS, down = rounded_up(outputs, OUTPUTS) / OUTPUTS;
  in_parallel<BFloat16>(across * down, num_threads, [&](int64_t block) {
    const int64_t o = block / across * OUTPUTS, rows = std::min(OUTPUTS, outputs - o);
    const int64_t first = block % across * INPUTS, last = std::min(first + INPUTS, inputs);
    Buffer<Item> left(OUTPUTS * STRIDE);
    for (int64_t t = 0; t < padded; t += TOKENS) {
      const int64_t count = std::min(TOKENS, padded - t);
      transpose(left, g + t * outputs + o, rows, num_tokens - t, count, outputs);
      for (int64_t i = first; i < last; i += PANEL)
        BFloat16::product(rows, PANEL, count, left, STRIDE, right + i * padded + t * PANEL, PANEL,
                          found + o * inputs + i, inputs, t > 0);
    }
  });
}
#endif
