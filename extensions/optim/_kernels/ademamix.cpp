// One pass over memory for a step of AdEMAMix on the CPU: reads and writes each number once.
//
// The formulas are those of extensions/optim/ademamix/functional.py, whose for-loop is the oracle; what depends
// on the step count is worked out there and comes in as `coefficients`, a row of four a tensor.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

namespace {

constexpr int64_t kChunk = 16384;  // elements a thread takes at a time
constexpr int64_t kCoefficients = 4;

template <typename T>
struct Step {
  T step_size;         // lr / (1 - beta1^t)
  T slow_weight;       // alpha(t) (1 - beta1^t)
  T root_correction;   // 1 / sqrt(1 - beta2^t)
  T slow_rate;         // 1 - beta3(t)
  T fast_rate;         // 1 - beta1
  T beta2;
  T square_rate;       // 1 - beta2
  T eps;
  T decay;             // 1 - lr * weight_decay
  T sign;              // -1 to maximize
  T grad_scale;
};

// As torch's: from the nearer end, or the smaller number would be lost beside the other.
template <typename T>
inline T lerp(T start, T end, T rate) {
  return rate < T(0.5) ? start + rate * (end - start) : end - (T(1) - rate) * (end - start);
}

template <typename P, typename G, typename T, bool has_fast, bool scaled>
inline void update_elements(P* p, G* g, T* fast, T* slow, T* square, int64_t begin, int64_t end, const Step<T>& s) {
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) {
    T grad = static_cast<T>(g[i]);
    if constexpr (scaled) {
      grad /= s.grad_scale;
      g[i] = static_cast<G>(grad);  // as torch's fused kernels, which leave gradients unscaled
    }
    grad *= s.sign;
    T m1 = grad;
    if constexpr (has_fast) {
      m1 = lerp(fast[i], grad, s.fast_rate);
      fast[i] = m1;
    }
    const T m2 = lerp(slow[i], grad, s.slow_rate);
    slow[i] = m2;
    const T v = s.beta2 * square[i] + s.square_rate * grad * grad;
    square[i] = v;
    const T denominator = std::sqrt(v) * s.root_correction + s.eps;
    const T weight = static_cast<T>(p[i]) * s.decay;
    p[i] = static_cast<P>(weight - s.step_size * (m1 + s.slow_weight * m2) / denominator);
  }
}

template <typename P, typename G, typename T, bool has_fast, bool scaled>
void update(P* p, G* g, T* fast, T* slow, T* square, int64_t n, const Step<T>& s) {
  // The processor's own prefetcher stops at the end of a page, which with five streams is felt: it costs 6%.
  constexpr int64_t kLine = 64 / sizeof(T), kAhead = 16 * kLine;
  int64_t i = 0;
  for (; i + kLine <= n; i += kLine) {
    __builtin_prefetch(p + i + kAhead, 1);
    __builtin_prefetch(g + i + kAhead, scaled);
    if constexpr (has_fast) __builtin_prefetch(fast + i + kAhead, 1);
    __builtin_prefetch(slow + i + kAhead, 1);
    __builtin_prefetch(square + i + kAhead, 1);
    update_elements<P, G, T, has_fast, scaled>(p, g, fast, slow, square, i, i + kLine, s);
  }
  update_elements<P, G, T, has_fast, scaled>(p, g, fast, slow, square, i, n, s);
}

struct Tensors {
  at::Tensor p, g, fast, slow, square;
};

template <typename P, typename G, typename T>
void update_chunk(const Tensors& t, int64_t begin, int64_t n, const Step<T>& s, bool scaled) {
  P* p = t.p.data_ptr<P>() + begin;
  G* g = t.g.data_ptr<G>() + begin;
  T* slow = t.slow.data_ptr<T>() + begin;
  T* square = t.square.data_ptr<T>() + begin;
  if (t.fast.defined()) {
    T* fast = t.fast.data_ptr<T>() + begin;
    scaled ? update<P, G, T, true, true>(p, g, fast, slow, square, n, s)
           : update<P, G, T, true, false>(p, g, fast, slow, square, n, s);
  } else {
    scaled ? update<P, G, T, false, true>(p, g, nullptr, slow, square, n, s)
           : update<P, G, T, false, false>(p, g, nullptr, slow, square, n, s);
  }
}

template <typename T>
Step<T> narrow(const Step<double>& s) {
  return {T(s.step_size), T(s.slow_weight), T(s.root_correction), T(s.slow_rate), T(s.fast_rate), T(s.beta2),
          T(s.square_rate), T(s.eps), T(s.decay), T(s.sign), T(s.grad_scale)};
}

void dispatch_chunk(const Tensors& t, int64_t begin, int64_t n, const Step<double>& s, bool scaled) {
  using at::ScalarType;
  const auto p = t.p.scalar_type(), g = t.g.scalar_type();
  if (p == ScalarType::Double) {
    update_chunk<double, double, double>(t, begin, n, s, scaled);
  } else if (p == ScalarType::Float) {
    update_chunk<float, float, float>(t, begin, n, narrow<float>(s), scaled);
  } else if (p == ScalarType::BFloat16 && g == ScalarType::Float) {
    update_chunk<at::BFloat16, float, float>(t, begin, n, narrow<float>(s), scaled);
  } else if (p == ScalarType::BFloat16) {
    update_chunk<at::BFloat16, at::BFloat16, float>(t, begin, n, narrow<float>(s), scaled);
  } else if (g == ScalarType::Float) {
    update_chunk<at::Half, float, float>(t, begin, n, narrow<float>(s), scaled);
  } else {
    update_chunk<at::Half, at::Half, float>(t, begin, n, narrow<float>(s), scaled);
  }
}

// Tensors of one index lie alike in memory: the caller sees to it.
void ademamix_(at::TensorList params, at::TensorList grads, at::TensorList fasts, at::TensorList slows,
               at::TensorList squares, at::ArrayRef<double> coefficients, double beta1, double beta2, double eps,
               double decay, bool maximize, std::optional<double> grad_scale) {
  struct Chunk {
    size_t tensor;
    int64_t begin, n;
  };
  std::vector<Tensors> tensors;
  std::vector<Step<double>> steps;
  std::vector<Chunk> chunks;
  const size_t count = params.size();
  TORCH_CHECK(grads.size() == count && slows.size() == count && squares.size() == count &&
                  (fasts.empty() || fasts.size() == count) && coefficients.size() == count * kCoefficients,
              "ademamix_: lists differ in length");
  for (size_t i = 0; i < count; ++i) {
    const double* c = coefficients.data() + i * kCoefficients;
    tensors.push_back({params[i], grads[i], fasts.empty() ? at::Tensor() : fasts[i], slows[i], squares[i]});
    steps.push_back({c[0], c[1], c[2], c[3], 1 - beta1, beta2, 1 - beta2, eps, decay, maximize ? -1.0 : 1.0,
                     grad_scale.value_or(1.0)});
    const int64_t numel = params[i].numel();
    TORCH_CHECK(grads[i].numel() == numel && slows[i].numel() == numel && squares[i].numel() == numel &&
                    (fasts.empty() || fasts[i].numel() == numel),
                "ademamix_: tensors of index ", i, " differ in size");
    for (int64_t begin = 0; begin < numel; begin += kChunk) {
      chunks.push_back({i, begin, std::min(kChunk, numel - begin)});
    }
  }
  at::parallel_for(0, chunks.size(), 1, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const Chunk& chunk = chunks[k];
      dispatch_chunk(tensors[chunk.tensor], chunk.begin, chunk.n, steps[chunk.tensor], grad_scale.has_value());
    }
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(rl_extensions, library) {
  library.def(
      "ademamix_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_slows, "
      "Tensor(e!)[] exp_avg_sqs, float[] coefficients, float beta1, float beta2, float eps, float decay, "
      "bool maximize, float? grad_scale) -> ()");
}

TORCH_LIBRARY_IMPL(rl_extensions, CPU, library) { library.impl("ademamix_", &ademamix_); }
