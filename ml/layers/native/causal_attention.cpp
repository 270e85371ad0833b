// Causal attention and its gradients on a CPU with AVX-512, and AMX for bfloat16; called by `causal_attention.py`.
#include "causal_backward.h"
#include "causal_forward.h"

namespace {

template <class E>
void forward(const Shape& shape, const Strided* in, void* output, float* log_sums, float scale, int num_threads) {
  Forward<E>{shape, in[0], in[1], in[2], static_cast<typename E::Item*>(output), log_sums, scale}.run(num_threads);
}

template <class E>
void backward(const Shape& shape, const Strided* in, const float* log_sums, void** out, float scale, int num_threads) {
  using Item = typename E::Item;
  Item* found[] = {(Item*)out[0], (Item*)out[1], (Item*)out[2]};
  Backward<E>{shape, in[0], in[1], in[2], in[3], in[4], log_sums, found[0], found[1], found[2], scale}.run(num_threads);
}

}  // namespace

extern "C" void causal_attention_forward(int is_half, const Shape* shape, const Strided* in, void* output,
                                         float* log_sums, float scale, int num_threads) {
#ifdef __AMX_BF16__
  if (is_half) return forward<BFloat16>(*shape, in, output, log_sums, scale, num_threads);
#endif
  forward<Float32>(*shape, in, output, log_sums, scale, num_threads);
}

extern "C" void causal_attention_backward(int is_half, const Shape* shape, const Strided* in, const float* log_sums,
                                          void** out, float scale, int num_threads) {
#ifdef __AMX_BF16__
  if (is_half) return backward<BFloat16>(*shape, in, log_sums, out, scale, num_threads);
#endif
  backward<Float32>(*shape, in, log_sums, out, scale, num_threads);
}
