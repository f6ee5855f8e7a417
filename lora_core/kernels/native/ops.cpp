// The operators: what they take and give, and how they are spread over torch's threads. The files beside this one say
// what is computed for a row. No result depends on the number of threads.
//
// Shapes: N rows, H, I and O their widths; B sentences, T tokens (padded), A attention heads, D = H / A. `keep` is what
// tells which elements dropout keeps (random.h): int64 (2,), the seed and how many of 65536 values drop an element.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "norm.h"
#include "numbers.h"
#include "quantise.h"
#include "random.h"
#include "tensors.h"

namespace lora_core {
namespace {

using at::Tensor;

// x (N, I) -> its rows as uint8 (N, I) around 128, and their scales (N,)
std::tuple<Tensor, Tensor> quantize_rows(const Tensor& x) {
  TORCH_CHECK(x.dim() == 2, "x must have rows and columns");
  int64_t rows = x.size(0), width = x.size(1);
  Tensor q = at::empty({rows, width}, x.options().dtype(at::kByte));
  Tensor scale = at::empty({rows}, x.options().dtype(at::kFloat));
  with_type(x, "x", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = data<T>(x);
    uint8_t* to = data<uint8_t>(q);
    float* scales = data<float>(scale);
    over_rows(rows, width, [&](int64_t n) { scales[n] = quantise_row(from + n * width, to + n * width, width); });
  });
  return {q, scale};
}

// y (N, O) becomes y * scale (N,) + bias (O,)
Tensor& rescale_rows_(Tensor& y, const Tensor& scale, const std::optional<Tensor>& bias) {
  TORCH_CHECK(y.dim() == 2, "y must have rows and columns");
  int64_t rows = y.size(0), width = y.size(1);
  check(scale, at::kFloat, "scale");
  TORCH_CHECK(scale.numel() == rows, "there must be a scale for each row");
  if (bias) {
    check(*bias, at::kFloat, "bias");
    TORCH_CHECK(bias->numel() == width, "bias must be as wide as y");
  }
  with_type(y, "y", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* rowwise = data<T>(y);
    const float* scales = data<float>(scale);
    const float* added = bias ? data<float>(*bias) : nullptr;
    over_rows(rows, width, [&](int64_t n) { rescale_row(rowwise + n * width, scales[n], added, width); });
  });
  return y;
}

Keep read_keep(const Tensor& keep) {
  check(keep, at::kLong, "keep");
  TORCH_CHECK(keep.numel() == 2, "keep must be a seed and a threshold");
  const int64_t* numbers = data<int64_t>(keep);
  return {uint64_t(numbers[0]), uint32_t(numbers[1])};
}

// Calls work(from, to) for parts of `count` elements.
template <class F>
void over_elements(int64_t count, const F& work) {
  at::parallel_for(0, (count + 127) / 128, GRAIN / 128,
                   [&](int64_t from, int64_t to) { work(from * 128, std::min(to * 128, count)); });
}

// keep * x, of any shape
Tensor drop(const Tensor& x, const Tensor& keep) {
  Keep kept = read_keep(keep);
  Tensor found = at::empty(x.sizes(), x.options());
  with_type(x, "x", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
    const Bits* from = data<Bits>(x);
    Bits* to = data<Bits>(found);
    over_elements(x.numel(), [&](int64_t first, int64_t last) {
      kept.over(first, last, [=](int64_t start, int64_t count, const uint8_t* k) {
#pragma omp simd
        for (int64_t i = 0; i < count; i++) to[start + i] = from[start + i] & Bits(-Bits(k[i]));
      });
    });
  });
  return found;
}

// y becomes y + keep * x, of one shape and type
Tensor& add_dropped_(Tensor& y, const Tensor& x, const Tensor& keep) {
  Keep kept = read_keep(keep);
  check(x, y.scalar_type(), "x");
  TORCH_CHECK(x.sizes() == y.sizes(), "x must have the shape of y");
  with_type(y, "y", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = data<T>(x);
    T* to = data<T>(y);
    over_elements(y.numel(), [&](int64_t first, int64_t last) {
      kept.over(first, last, [=](int64_t start, int64_t count, const uint8_t* k) {
#pragma omp simd
        for (int64_t i = 0; i < count; i++) {
          float added = load(from[start + i]);
          store(to[start + i], load(to[start + i]) + (k[i] ? added : 0.0f));
        }
      });
    });
  });
  return y;
}

const float* data_or_null(const std::optional<Tensor>& x, int64_t width, const char* name) {
  if (!x) return nullptr;
  check(*x, at::kFloat, name);
  TORCH_CHECK(x->numel() == width, name, " must be as wide as a row");
  return data<float>(*x);
}

// norm(residual + scale * keep * x) for x and residual (N, H); also the sum, and its moments (N, 2)
std::tuple<Tensor, Tensor, Tensor> add_norm(const Tensor& x, const Tensor& residual, const std::optional<Tensor>& weight,
                                            const std::optional<Tensor>& bias, double eps,
                                            const std::optional<Tensor>& keep, double scale) {
  TORCH_CHECK(x.dim() == 2 && x.sizes() == residual.sizes(), "x and the residual must be rows of one shape");
  check(residual, at::kFloat, "residual");
  int64_t rows = x.size(0), width = x.size(1);
  const float* weights = data_or_null(weight, width, "weight");
  const float* biases = data_or_null(bias, width, "bias");
  Keep kept = keep ? read_keep(*keep) : Keep{};
  Tensor sum = at::empty({rows, width}, residual.options()), out = at::empty({rows, width}, residual.options());
  Tensor moments = at::empty({rows, 2}, residual.options());
  with_type(x, "x", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = data<T>(x);
    const float* beside = data<float>(residual);
    float *sums = data<float>(sum), *to = data<float>(out);
    Moments* found = reinterpret_cast<Moments*>(data<float>(moments));
    over_rows(rows, width, [&](int64_t n) {
      int64_t first = n * width;
      found[n] = add_norm_row(from + first, beside + first, weights, biases, float(eps), keep ? &kept : nullptr,
                              float(scale), first, sums + first, to + first, width);
    });
  });
  return {out, sum, moments};
}

// The gradients of add_norm: dx in its own type and, where they are wanted, dresidual, dweight and dbias; else empty
std::tuple<Tensor, Tensor, Tensor, Tensor> add_norm_backward(const Tensor& grad, const Tensor& sum,
                                                             const Tensor& moments, const std::optional<Tensor>& weight,
                                                             const std::optional<Tensor>& keep, double scale,
                                                             at::ScalarType dtype, bool needs_x, bool needs_weight,
                                                             bool needs_bias) {
  int64_t rows = sum.size(0), width = sum.size(1);
  check(grad, at::kFloat, "grad");
  TORCH_CHECK(grad.sizes() == sum.sizes(), "grad must have the shape of the sum");
  const float* weights = data_or_null(weight, width, "weight");
  Keep kept = keep ? read_keep(*keep) : Keep{};
  auto options = sum.options();
  Tensor dx = at::empty({needs_x ? rows : 0, width}, options.dtype(dtype));
  Tensor dresidual = at::empty({rows, width}, options);
  // Sums over the rows are made for every 64 of them and then put together, on any number of threads.
  constexpr int64_t PART = 64;
  int64_t parts = (rows + PART - 1) / PART;
  Tensor dweight = at::zeros({needs_weight ? parts : 0, width}, options);
  Tensor dbias = at::zeros({needs_bias ? parts : 0, width}, options);
  with_type(dx, "dx", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* to = needs_x ? data<T>(dx) : nullptr;
    const float *from = data<float>(grad), *sums = data<float>(sum);
    const Moments* found = reinterpret_cast<const Moments*>(data<float>(moments));
    float *beside = data<float>(dresidual), *weight_sums = data<float>(dweight), *bias_sums = data<float>(dbias);
    over_rows(parts, PART * width, [&](int64_t part) {
      float* own_weight = needs_weight ? weight_sums + part * width : nullptr;
      float* own_bias = needs_bias ? bias_sums + part * width : nullptr;
      for (int64_t n = part * PART; n < std::min(rows, (part + 1) * PART); n++) {
        int64_t first = n * width;
        add_norm_backward_row(from + first, sums + first, found[n], weights, keep ? &kept : nullptr, float(scale),
                              first, to ? to + first : nullptr, beside + first, own_weight, own_bias, width);
      }
    });
  });
  return {dx, dresidual, dweight.sum(0), dbias.sum(0)};
}

// Packed rows x (R, H), which may be some columns of wider ones, to the heads of padded sentences (B A, T, D), times
// scale, zeros at padding. The first rows stand at the places `index` (N,) among all B T; without it all B T do in turn.
Tensor split_heads(const Tensor& x, const std::optional<Tensor>& index, int64_t sentences, int64_t tokens,
                   int64_t heads, double scale) {
  TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1 && x.device().is_cpu(), "x must be rows on the CPU");
  int64_t width = x.size(1), size = width / heads, step = x.stride(0);
  int64_t rows = index ? index->numel() : sentences * tokens;
  TORCH_CHECK(rows <= x.size(0) && size * heads == width, "x does not hold the rows, or not the heads");
  if (index) check(*index, at::kLong, "index");
  const int64_t* places = index ? data<int64_t>(*index) : nullptr;
  auto shape = {sentences * heads, tokens, size};
  Tensor found = index ? at::zeros(shape, x.options()) : at::empty(shape, x.options());
  with_type(found, "x", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = data<T>(x);
    T* to = data<T>(found);
    over_rows(rows, width, [&](int64_t n) {
      int64_t place = places ? places[n] : n;
      T* first = to + ((place / tokens) * heads * tokens + place % tokens) * size;
      for (int64_t head = 0; head < heads; head++) {
        const T* part = from + n * step + head * size;
        T* own = first + head * tokens * size;
        if (scale == 1.0) {
          std::copy_n(part, size, own);
        } else {
#pragma omp simd
          for (int64_t i = 0; i < size; i++) store(own[i], load(part[i]) * float(scale));
        }
      }
    });
  });
  return found;
}

// The way back: heads of padded sentences (B A, T, D) to packed rows (R, H), times scale, zeros behind the real ones
Tensor join_heads(const Tensor& x, const std::optional<Tensor>& index, int64_t rows, int64_t heads, double scale) {
  TORCH_CHECK(x.dim() == 3, "x must be heads, tokens and features");
  int64_t tokens = x.size(1), size = x.size(2), width = heads * size;
  int64_t real = index ? index->numel() : rows;
  TORCH_CHECK(real <= rows && real <= x.size(0) / heads * tokens, "there are more rows than tokens");
  if (index) check(*index, at::kLong, "index");
  const int64_t* places = index ? data<int64_t>(*index) : nullptr;
  Tensor found = at::empty({rows, width}, x.options());
  with_type(x, "x", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = data<T>(x);
    T* to = data<T>(found);
    over_rows(rows, width, [&](int64_t n) {
      T* own = to + n * width;
      if (n >= real) {
        std::fill_n(own, width, T{});
        return;
      }
      int64_t place = places ? places[n] : n;
      const T* first = from + ((place / tokens) * heads * tokens + place % tokens) * size;
      for (int64_t head = 0; head < heads; head++) {
        const T* part = first + head * tokens * size;
#pragma omp simd
        for (int64_t i = 0; i < size; i++) store(own[head * size + i], load(part[i]) * float(scale));
      }
    });
  });
  return found;
}

}  // namespace
}  // namespace lora_core

TORCH_LIBRARY(lora_core_native, library) {
  library.def("quantize_rows(Tensor x) -> (Tensor, Tensor)");
  library.def("rescale_rows_(Tensor(a!) y, Tensor scale, Tensor? bias) -> Tensor(a!)");
  library.def("drop(Tensor x, Tensor keep) -> Tensor");
  library.def("add_dropped_(Tensor(a!) y, Tensor x, Tensor keep) -> Tensor(a!)");
  library.def(
      "add_norm(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float eps, Tensor? keep, float scale) "
      "-> (Tensor, Tensor, Tensor)");
  library.def(
      "add_norm_backward(Tensor grad, Tensor sum, Tensor moments, Tensor? weight, Tensor? keep, float scale, "
      "ScalarType dtype, bool needs_x, bool needs_weight, bool needs_bias) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def("split_heads(Tensor x, Tensor? index, int sentences, int tokens, int heads, float scale) -> Tensor");
  library.def("join_heads(Tensor x, Tensor? index, int rows, int heads, float scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(lora_core_native, CPU, library) {
  library.impl("quantize_rows", &lora_core::quantize_rows);
  library.impl("rescale_rows_", &lora_core::rescale_rows_);
  library.impl("drop", &lora_core::drop);
  library.impl("add_dropped_", &lora_core::add_dropped_);
  library.impl("add_norm", &lora_core::add_norm);
  library.impl("add_norm_backward", &lora_core::add_norm_backward);
  library.impl("split_heads", &lora_core::split_heads);
  library.impl("join_heads", &lora_core::join_heads);
}
