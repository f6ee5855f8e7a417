// How the operators read tensors and are spread over torch's threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>

#include "numbers.h"

namespace lora_core {

// Fewer numbers than this are not worth another thread.
constexpr int64_t GRAIN = 16384;

inline void check(const at::Tensor& x, at::ScalarType dtype, const char* name) {
  TORCH_CHECK(x.device().is_cpu() && x.is_contiguous() && x.scalar_type() == dtype,
              name, " must be a contiguous CPU tensor of ", dtype, ", not ", x.scalar_type());
}

template <class T>
T* data(const at::Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

// Calls `work` with a null pointer to the type that x holds, fp32 or bf16.
template <class F>
void with_type(const at::Tensor& x, const char* name, const F& work) {
  TORCH_CHECK(x.device().is_cpu() && x.is_contiguous(), name, " must be a contiguous CPU tensor");
  if (x.scalar_type() == at::kFloat) {
    work(static_cast<float*>(nullptr));
  } else {
    TORCH_CHECK(x.scalar_type() == at::kBFloat16, name, " must be float32 or bfloat16, not ", x.scalar_type());
    work(static_cast<bfloat16*>(nullptr));
  }
}

// Calls work(row) for each row.
template <class F>
void over_rows(int64_t rows, int64_t width, const F& work) {
  at::parallel_for(0, rows, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, width)), [&](int64_t from, int64_t to) {
    for (int64_t row = from; row < to; row++) work(row);
  });
}

}  // namespace lora_core
