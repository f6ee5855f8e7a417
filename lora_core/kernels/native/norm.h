// Dropout, residual sum and LayerNorm as one pass over a row, and back.
#pragma once

#include <cmath>

#include "random.h"

namespace lora_core {

// What a row of LayerNorm is divided by and what is taken off.
struct Moments {
  float mean, rstd;
};

// sum = residual + scale * keep * x;  out = (sum - mean) * rstd * weight + bias
// The row is that of the elements from `first` on; without `keep` none is dropped.
template <class T>
Moments add_norm_row(const T* x, const float* residual, const float* weight, const float* bias, float eps,
                     const Keep* keep, float scale, int64_t first, float* sum, float* out, int64_t width) {
  if (keep) {
    keep->over(first, first + width, [=](int64_t start, int64_t count, const uint8_t* kept) {
      const int64_t at = start - first;
#pragma omp simd
      for (int64_t i = 0; i < count; i++) {
        float added = scale * load(x[at + i]);
        sum[at + i] = residual[at + i] + (kept[i] ? added : 0.0f);
      }
    });
  } else {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) sum[i] = residual[i] + load(x[i]);
  }
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < width; i++) total += sum[i];
  float mean = total / float(width), squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < width; i++) squares += (sum[i] - mean) * (sum[i] - mean);
  float rstd = 1.0f / std::sqrt(squares / float(width) + eps);
#pragma omp simd
  for (int64_t i = 0; i < width; i++) {
    float normed = (sum[i] - mean) * rstd;
    if (weight) normed *= weight[i];
    out[i] = bias ? normed + bias[i] : normed;
  }
  return {mean, rstd};
}

// The gradients of the residual, and of x where it is wanted. With n = (sum - mean) rstd and h = grad * weight:
//   dresidual = rstd (h - mean(h) - n mean(h n)),  dx = scale * keep * dresidual
// grad * n and grad are added to dweight and dbias, which may be null.
template <class T>
void add_norm_backward_row(const float* grad, const float* sum, Moments moments, const float* weight, const Keep* keep,
                           float scale, int64_t first, T* dx, float* dresidual, float* dweight, float* dbias,
                           int64_t width) {
  float mean = moments.mean, rstd = moments.rstd, total = 0, dot = 0;
#pragma omp simd reduction(+ : total, dot)
  for (int64_t i = 0; i < width; i++) {
    float h = weight ? grad[i] * weight[i] : grad[i];
    total += h;
    dot += h * ((sum[i] - mean) * rstd);
  }
  total /= float(width);
  dot /= float(width);
#pragma omp simd
  for (int64_t i = 0; i < width; i++) {
    float h = weight ? grad[i] * weight[i] : grad[i];
    dresidual[i] = rstd * (h - total - (sum[i] - mean) * rstd * dot);
  }
  if (dx && keep) {
    keep->over(first, first + width, [=](int64_t start, int64_t count, const uint8_t* kept) {
      const int64_t at = start - first;
#pragma omp simd
      for (int64_t i = 0; i < count; i++) {
        float passed = scale * dresidual[at + i];
        store(dx[at + i], kept[i] ? passed : 0.0f);
      }
    });
  } else if (dx) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) store(dx[i], dresidual[i]);
  }
  if (dweight) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) dweight[i] += grad[i] * ((sum[i] - mean) * rstd);
  }
  if (dbias) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) dbias[i] += grad[i];
  }
}

}  // namespace lora_core
