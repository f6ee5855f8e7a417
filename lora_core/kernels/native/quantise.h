// Rows as 8-bit integers with a scale each, for products in int8.
#pragma once

#include <algorithm>

#include "numbers.h"

namespace lora_core {

// q = round(x / scale) + 128 with scale = max|x| / 127, which is returned. It is NaN for a row that holds a NaN or an
// infinity, so that whatever is computed of the row is NaN too. A row of zeros is 128 throughout.
template <class T>
float quantise_row(const T* x, uint8_t* q, int64_t width) {
  // The bits of absolute values are in the order of the values, with infinity and the NaNs above all others.
  int32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < width; i++) {
    largest = std::max(largest, bit_cast<int32_t>(load(x[i])) & 0x7fffffff);
  }
  if (largest >= 0x7f800000) {
    std::fill_n(q, width, uint8_t(128));
    return bit_cast<float>(0x7fc00000);
  }
  float most = bit_cast<float>(largest);
  float inverse = most < 1e-35f ? 0.0f : 127.0f / most;  // below, the inverse would be infinite
  // A float between 2^23 and 2^24 has the step 1, so its lowest bits are the rounded number.
  const float shift = 12582912.0f + 128.0f;  // 1.5 * 2^23: its own lowest byte is 0
#pragma omp simd
  for (int64_t i = 0; i < width; i++) {
    q[i] = uint8_t(bit_cast<uint32_t>(load(x[i]) * inverse + shift));
  }
  return most / 127.0f;
}

// y = y * scale + bias
template <class T>
void rescale_row(T* y, float scale, const float* bias, int64_t width) {
  if (bias) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) store(y[i], load(y[i]) * scale + bias[i]);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) store(y[i], load(y[i]) * scale);
  }
}

}  // namespace lora_core
