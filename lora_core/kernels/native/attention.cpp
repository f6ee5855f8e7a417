// The operators of attention; attention.h says what is computed for a head.
//
// Shapes: R packed rows of tokens (of queries perhaps others), H their width, A attention heads, S sentences. Sentence s
// has the rows bounds[s] to bounds[s + 1], with bounds int32 (S + 1,).
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>

#include "attention.h"
#include "tensors.h"

namespace lora_core {
namespace {

using at::Tensor;

// Rows (R, H), which may be some columns of wider ones.
void check_rows(const Tensor& x, const Tensor& like, const char* name) {
  TORCH_CHECK(x.device().is_cpu() && x.dim() == 2 && x.stride(1) == 1 && x.scalar_type() == like.scalar_type() &&
                  x.size(1) == like.size(1),
              name, " must be rows on the CPU, of the width and type of the queries");
}

void check_bounds(const Tensor& bounds, const Tensor& rows) {
  check(bounds, at::kInt, "bounds");
  const int64_t count = bounds.numel();
  const int32_t* at = data<int32_t>(bounds);
  TORCH_CHECK(count > 0 && at[0] == 0 && at[count - 1] == rows.size(0), "bounds must reach from 0 to the number of rows");
  for (int64_t s = 0; s + 1 < count; s++) TORCH_CHECK(at[s] <= at[s + 1], "bounds must not fall");
}

void check_inputs(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& asked, const Tensor& told,
                  int64_t heads) {
  TORCH_CHECK(query.dim() == 2 && heads > 0 && query.size(1) % heads == 0, "the heads do not fit the queries");
  check_rows(query, query, "query");
  check_rows(key, query, "key");
  check_rows(value, query, "value");
  check_bounds(asked, query);
  check_bounds(told, key);
  TORCH_CHECK(key.size(0) == value.size(0) && asked.numel() == told.numel(), "each key has a value, each sentence both");
  const int32_t *q = data<int32_t>(asked), *k = data<int32_t>(told);
  for (int64_t s = 0; s + 1 < asked.numel(); s++) {
    TORCH_CHECK((q[s] == q[s + 1]) == (k[s] == k[s + 1]), "a sentence must have queries and keys, or neither");
  }
}

// Calls work(sentence, head, workspace) for each.
template <class F>
void over_heads(const Tensor& asked, const Tensor& told, int64_t heads, int64_t size, const F& work) {
  const int32_t *q = data<int32_t>(asked), *k = data<int32_t>(told);
  at::parallel_for(0, (asked.numel() - 1) * heads, 1, [&](int64_t from, int64_t to) {
    Workspace workspace;
    for (int64_t n = from; n < to; n++) {
      int64_t s = n / heads;
      if (q[s] == q[s + 1]) continue;
      workspace.resize(q[s + 1] - q[s], k[s + 1] - k[s], size);
      work(s, n % heads, workspace);
    }
  });
}

// query (R, H), key and value (R, H) -> attention's output (R, H), and how softmax was computed (R, A, 2)
std::tuple<Tensor, Tensor> attend(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& asked,
                                  const Tensor& told, int64_t heads) {
  check_inputs(query, key, value, asked, told, heads);
  int64_t width = query.size(1), size = width / heads;
  Tensor out = at::empty({query.size(0), width}, query.options());
  Tensor softmax = at::empty({query.size(0), heads, 2}, query.options().dtype(at::kFloat));
  with_type(out, "query", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int32_t *q = data<int32_t>(asked), *k = data<int32_t>(told);
    over_heads(asked, told, heads, size, [&](int64_t s, int64_t head, Workspace& w) {
      int64_t first = head * size;
      attend_head(data<T>(query) + q[s] * query.stride(0) + first, query.stride(0),
                  data<T>(key) + k[s] * key.stride(0) + first, key.stride(0),
                  data<T>(value) + k[s] * value.stride(0) + first, value.stride(0),
                  data<T>(out) + q[s] * width + first, width, data<Softmax>(softmax) + q[s] * heads + head, heads,
                  1.0f / std::sqrt(float(size)), w);
    });
  });
  return {out, softmax};
}

// The gradients of attend: dquery, dkey and dvalue
std::tuple<Tensor, Tensor, Tensor> attend_backward(const Tensor& grad, const Tensor& query, const Tensor& key,
                                                   const Tensor& value, const Tensor& softmax, const Tensor& asked,
                                                   const Tensor& told, int64_t heads) {
  check_inputs(query, key, value, asked, told, heads);
  check(grad, query.scalar_type(), "grad");
  TORCH_CHECK(grad.sizes() == query.sizes(), "grad must have the shape of the queries");
  check(softmax, at::kFloat, "softmax");
  TORCH_CHECK(softmax.numel() == query.size(0) * heads * 2, "softmax must be that of attend");
  int64_t width = query.size(1), size = width / heads;
  auto empty = [&](const Tensor& like) { return at::empty({like.size(0), width}, like.options()); };
  Tensor dquery = empty(query), dkey = empty(key), dvalue = empty(value);
  with_type(dquery, "query", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int32_t *q = data<int32_t>(asked), *k = data<int32_t>(told);
    over_heads(asked, told, heads, size, [&](int64_t s, int64_t head, Workspace& w) {
      int64_t first = head * size;
      attend_head_backward(data<T>(grad) + q[s] * width + first, width,
                           data<T>(query) + q[s] * query.stride(0) + first, query.stride(0),
                           data<T>(key) + k[s] * key.stride(0) + first, key.stride(0),
                           data<T>(value) + k[s] * value.stride(0) + first, value.stride(0),
                           data<Softmax>(softmax) + q[s] * heads + head, heads, 1.0f / std::sqrt(float(size)),
                           data<T>(dquery) + q[s] * width + first, data<T>(dkey) + k[s] * width + first,
                           data<T>(dvalue) + k[s] * width + first, width, w);
    });
  });
  return {dquery, dkey, dvalue};
}

}  // namespace
}  // namespace lora_core

TORCH_LIBRARY_FRAGMENT(lora_core_native, library) {
  library.def(
      "attend(Tensor query, Tensor key, Tensor value, Tensor asked, Tensor told, int heads) -> (Tensor, Tensor)");
  library.def(
      "attend_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor softmax, Tensor asked, "
      "Tensor told, int heads) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(lora_core_native, CPU, library) {
  library.impl("attend", &lora_core::attend);
  library.impl("attend_backward", &lora_core::attend_backward);
}
