// Attention of one head to one sentence, and back, in fp32 and in the caches.
//
// Shapes: Q tokens ask, T are asked, D is the size of a head. In the workspace rows are as wide as whole vectors, with
// zeros behind, and their number is rounded up to a multiple of 4, so that no loop below has a remainder.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "numbers.h"

namespace lora_core {

#ifdef __AVX512F__
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

inline int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

inline Vector& at(float* x) { return *reinterpret_cast<Vector*>(x); }

inline Vector at(const float* x) { return *reinterpret_cast<const Vector*>(x); }

// 4 rows and N vectors of c = a b, where a(m, k) is a[m * a_row + k * a_column] and the rows of b are b_row apart.
template <int N>
inline void multiply_tile(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, float* c,
                          int64_t c_row, int64_t depth) {
  Vector sums[4][N] = {};
  for (int64_t k = 0; k < depth; k++) {
    for (int m = 0; m < 4; m++) {
      float factor = a[m * a_row + k * a_column];
      for (int n = 0; n < N; n++) sums[m][n] += factor * at(b + k * b_row + n * LANES);
    }
  }
  for (int m = 0; m < 4; m++) {
    for (int n = 0; n < N; n++) at(c + m * c_row + n * LANES) = sums[m][n];
  }
}

// c (rows, columns) = a (rows, depth) b (depth, columns), for multiples of 4 rows and LANES columns
inline void multiply(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, float* c,
                     int64_t c_row, int64_t rows, int64_t depth, int64_t columns) {
  int64_t column = 0;
  for (; column + 2 * LANES <= columns; column += 2 * LANES) {
    for (int64_t row = 0; row < rows; row += 4) {
      multiply_tile<2>(a + row * a_row, a_row, a_column, b + column, b_row, c + row * c_row + column, c_row, depth);
    }
  }
  if (column < columns) {
    for (int64_t row = 0; row < rows; row += 4) {
      multiply_tile<1>(a + row * a_row, a_row, a_column, b + column, b_row, c + row * c_row + column, c_row, depth);
    }
  }
}

// exp(x) for x <= 0 within 2 units in the last place; below -87 it is 0 or nearly so, and a NaN stays one. The
// polynomial and the constants are those of Cephes' expf (Moshier).
inline Vector exponential(Vector x) {
  Vector low = x - x - 87.0f;  // NaN where x is
  x = x < low ? low : x;
  Vector shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number
  Vector whole = shifted - 12582912.0f;
  Vector r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Vector y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  Integers power = ((Integers)shifted - 0x4b400000) << 23;
  Vector scaled = (Vector)((Integers)y + power);
  return x == x ? scaled : x;
}

// What a thread works in.
struct Workspace {
  int64_t head, asked, told;         // D, Q and T as they are
  int64_t wide, long_, rows, short_; // D and T in whole vectors; Q and T in fours
  std::vector<float> memory;
  float *query, *key, *key_turned, *value, *value_turned, *weights, *scores, *grad, *out;

  void resize(int64_t asked_, int64_t told_, int64_t head_) {
    head = head_, asked = asked_, told = told_;
    wide = round_up(head, LANES), long_ = round_up(told, LANES);
    rows = round_up(asked, 4), short_ = round_up(told, 4);
    const int64_t of_rows = std::max(rows, short_) * wide;
    const int64_t turned = wide * long_, square = rows * long_;
    const int64_t total = LANES + 5 * of_rows + 2 * turned + 2 * square;
    if (int64_t(memory.size()) < total) memory.resize(total);
    float* next = reinterpret_cast<float*>(round_up(reinterpret_cast<int64_t>(memory.data()), 4 * LANES));
    for (float** part : {&query, &key, &value, &grad, &out}) *part = next, next += of_rows;
    for (float** part : {&key_turned, &value_turned}) *part = next, next += turned;
    for (float** part : {&weights, &scores}) *part = next, next += square;
  }
};

// Rows x (count, D) that are `step` apart, times scale, as `to` (padded to `most` rows), and turned (D, T) if wanted.
template <class T>
void read_rows(const T* x, int64_t step, int64_t count, float scale, float* to, int64_t most, float* turned,
               const Workspace& w) {
  for (int64_t row = 0; row < count; row++) {
    float* own = to + row * w.wide;
#pragma omp simd
    for (int64_t i = 0; i < w.head; i++) own[i] = scale * load(x[row * step + i]);
    std::fill(own + w.head, own + w.wide, 0.0f);
  }
  std::fill(to + count * w.wide, to + most * w.wide, 0.0f);
  if (!turned) return;
  for (int64_t i = 0; i < w.head; i++) {
    float* own = turned + i * w.long_;
    for (int64_t row = 0; row < count; row++) own[row] = to[row * w.wide + i];
    std::fill(own + count, own + w.long_, 0.0f);
  }
}

template <class T>
void write_rows(const float* from, int64_t count, float scale, T* to, int64_t step, const Workspace& w) {
  for (int64_t row = 0; row < count; row++) {
#pragma omp simd
    for (int64_t i = 0; i < w.head; i++) store(to[row * step + i], scale * from[row * w.wide + i]);
  }
}

// What a row of scores is shifted by and multiplied with in softmax, which is exp(score - shift) * share.
struct Softmax {
  float shift, share;
};

// A row of weights from its scores, in place; what is behind the row is finite.
inline void softmax_row(float* row, Softmax by, const Workspace& w) {
  for (int64_t j = 0; j < w.long_; j += LANES) at(row + j) = exponential(at(row + j) - by.shift) * by.share;
}

// The same but for the share, where that and the shift are not known yet; they are returned.
inline Softmax exponential_row(float* row, const Workspace& w) {
  constexpr float LEAST = std::numeric_limits<float>::lowest();
  for (int64_t j = w.told; j < w.long_; j++) row[j] = LEAST;
  Vector most = at(row);
  for (int64_t j = LANES; j < w.long_; j += LANES) most = at(row + j) > most ? at(row + j) : most;
  float shift = LEAST;
#pragma omp simd reduction(max : shift)
  for (int lane = 0; lane < LANES; lane++) shift = most[lane] > shift ? most[lane] : shift;
  Vector sums = {};
  for (int64_t j = 0; j < w.long_; j += LANES) {
    Vector e = exponential(at(row + j) - shift);
    at(row + j) = e;
    sums += e;
  }
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int lane = 0; lane < LANES; lane++) total += sums[lane];
  return {shift, 1.0f / total};
}

// out (Q, D) = softmax(query key^T scale) value, and how softmax was computed. Rows are a step apart that each has, those
// of `found` the number of heads.
template <class T>
void attend_head(const T* query, int64_t q_step, const T* key, int64_t k_step, const T* value, int64_t v_step, T* out,
                 int64_t o_step, Softmax* found, int64_t heads, float scale, Workspace& w) {
  read_rows(query, q_step, w.asked, scale, w.query, w.rows, nullptr, w);
  read_rows(key, k_step, w.told, 1.0f, w.key, w.short_, w.key_turned, w);
  read_rows(value, v_step, w.told, 1.0f, w.value, w.short_, nullptr, w);
  multiply(w.query, w.wide, 1, w.key_turned, w.long_, w.weights, w.long_, w.rows, w.head, w.long_);
  for (int64_t i = 0; i < w.asked; i++) found[i * heads] = exponential_row(w.weights + i * w.long_, w);
  multiply(w.weights, w.long_, 1, w.value, w.wide, w.out, w.wide, w.rows, w.told, w.wide);
  for (int64_t i = 0; i < w.asked; i++) {
    for (int64_t j = 0; j < w.wide; j += LANES) at(w.out + i * w.wide + j) *= found[i * heads].share;
  }
  write_rows(w.out, w.asked, 1.0f, out, o_step, w);
}

// The gradients. With P the weights, which are computed again, and dP = grad value^T:
//   dvalue = P^T grad,  dS = P (dP - sum_j P dP),  dquery = scale dS key,  dkey = scale dS^T query
template <class T>
void attend_head_backward(const T* grad, int64_t g_step, const T* query, int64_t q_step, const T* key, int64_t k_step,
                          const T* value, int64_t v_step, const Softmax* found, int64_t heads, float scale,
                          T* dquery, T* dkey, T* dvalue, int64_t d_step, Workspace& w) {
  read_rows(query, q_step, w.asked, scale, w.query, w.rows, nullptr, w);
  read_rows(grad, g_step, w.asked, 1.0f, w.grad, w.rows, nullptr, w);
  read_rows(key, k_step, w.told, 1.0f, w.key, w.short_, w.key_turned, w);
  read_rows(value, v_step, w.told, 1.0f, w.value, w.short_, w.value_turned, w);
  multiply(w.query, w.wide, 1, w.key_turned, w.long_, w.weights, w.long_, w.rows, w.head, w.long_);
  multiply(w.grad, w.wide, 1, w.value_turned, w.long_, w.scores, w.long_, w.rows, w.head, w.long_);
  for (int64_t i = 0; i < w.asked; i++) softmax_row(w.weights + i * w.long_, found[i * heads], w);
  multiply(w.weights, 1, w.long_, w.grad, w.wide, w.out, w.wide, w.short_, w.asked, w.wide);
  write_rows(w.out, w.told, 1.0f, dvalue, d_step, w);
  for (int64_t i = 0; i < w.rows; i++) {
    float *weights = w.weights + i * w.long_, *scores = w.scores + i * w.long_, dot = 0;
    if (i >= w.asked) {
      std::fill_n(scores, w.long_, 0.0f);
      continue;
    }
#pragma omp simd reduction(+ : dot)
    for (int64_t j = 0; j < w.long_; j++) dot += weights[j] * scores[j];
#pragma omp simd
    for (int64_t j = 0; j < w.long_; j++) scores[j] = weights[j] * (scores[j] - dot);
  }
  multiply(w.scores, w.long_, 1, w.key, w.wide, w.out, w.wide, w.rows, w.told, w.wide);
  write_rows(w.out, w.asked, scale, dquery, d_step, w);
  multiply(w.scores, 1, w.long_, w.query, w.wide, w.out, w.wide, w.short_, w.asked, w.wide);
  write_rows(w.out, w.told, 1.0f, dkey, d_step, w);
}

}  // namespace lora_core
