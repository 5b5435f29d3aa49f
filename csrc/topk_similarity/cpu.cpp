#include <limits>

#include "huge_pages.h"
#include "topk_similarity/search.h"
#include "topk_similarity/topk_similarity.h"

namespace ofa::topk_similarity {

int64_t workspace(int64_t queries, int64_t keys, int64_t depth, int64_t k, int threads) {
  Workspace measure;
  Scratch(measure, Plan(queries, keys, depth, k, threads), queries, keys, k);
  return measure.bytes();
}

void forward(Tensor queries_tensor, Tensor keys_tensor, int64_t k, bool cosine, Tensor scores_tensor,
             Tensor indices_tensor, Tensor report_tensor, Tensor workspace, int threads) {
  const int64_t queries = queries_tensor.size(0), keys = keys_tensor.size(0), depth = keys_tensor.size(1);
  const Dtype dtype = keys_tensor.dtype();
  if (queries_tensor.dtype() != dtype || (dtype != Dtype::f32 && dtype != Dtype::f16 && dtype != Dtype::bf16))
    throw std::invalid_argument("queries and keys must share one dtype: float32, float16 or bfloat16");
  if (k < 1 || k > keys) throw std::invalid_argument("k must lie in [1, K]");
  if (keys > std::numeric_limits<int32_t>::max()) throw std::invalid_argument("keys must have fewer than 2^31 rows");
  const char* query_rows = static_cast<const char*>(queries_tensor.data("queries", {queries, depth}));
  const char* key_rows = static_cast<const char*>(keys_tensor.data("keys", {keys, depth}));
  float* scores = scores_tensor.data<float>("scores", {queries, k});
  int64_t* indices = indices_tensor.data<int64_t>("indices", {queries, k});
  int64_t* report = report_tensor.data<int64_t>("report", {2});

  const Plan plan(queries, keys, depth, k, threads);
  prefer_huge_pages(workspace.data<uint8_t>("workspace", {workspace.numel()}), workspace.numel());
  Workspace memory(workspace);
  const Scratch scratch(memory, plan, queries, keys, k);
  Search(query_rows, key_rows, dtype, queries, keys, depth, k, cosine, plan, scratch).run(scores, indices, report);
}

}  // namespace ofa::topk_similarity
