// The operators: what they take and give, and how they are spread over torch's threads. The files beside this one say
// what is computed for a row. No result depends on the number of threads.
//
// Shapes: N rows, I and O their widths.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "numbers.h"
#include "quantise.h"

namespace lora_core {
namespace {

using at::Tensor;

// Fewer numbers than this are not worth another thread.
constexpr int64_t GRAIN = 16384;

void check(const Tensor& x, at::ScalarType dtype, const char* name) {
  TORCH_CHECK(x.device().is_cpu() && x.is_contiguous() && x.scalar_type() == dtype,
              name, " must be a contiguous CPU tensor of ", dtype, ", not ", x.scalar_type());
}

template <class T>
T* data(const Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

// Calls `work` with a null pointer to the type that x holds, fp32 or bf16.
template <class F>
void with_type(const Tensor& x, const char* name, const F& work) {
  TORCH_CHECK(x.device().is_cpu() && x.is_contiguous(), name, " must be a contiguous CPU tensor");
  if (x.scalar_type() == at::kFloat) {
    work(static_cast<float*>(nullptr));
  } else {
    TORCH_CHECK(x.scalar_type() == at::kBFloat16, name, " must be float32 or bfloat16, not ", x.scalar_type());
    work(static_cast<bfloat16*>(nullptr));
  }
}

template <class F>
void over_rows(int64_t rows, int64_t width, const F& work) {
  at::parallel_for(0, rows, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, width)), [&](int64_t from, int64_t to) {
    for (int64_t row = from; row < to; row++) work(row);
  });
}

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

}  // namespace
}  // namespace lora_core

TORCH_LIBRARY(lora_core_native, library) {
  library.def("quantize_rows(Tensor x) -> (Tensor, Tensor)");
  library.def("rescale_rows_(Tensor(a!) y, Tensor scale, Tensor? bias) -> Tensor(a!)");
}

TORCH_LIBRARY_IMPL(lora_core_native, CPU, library) {
  library.impl("quantize_rows", &lora_core::quantize_rows);
  library.impl("rescale_rows_", &lora_core::rescale_rows_);
}
