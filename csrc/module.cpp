// Binds each op once. Compiled into _cpu with the CPU kernels and into _cuda with the CUDA kernels.
#include <pybind11/pybind11.h>

#include "device.h"
#include "factorized_cross_entropy/factorized_cross_entropy.h"
#include "factorized_embedding/factorized_embedding.h"
#include "isa.h"
#include "legacy_normal.h"
#include "pickle_scan.h"
#include "subword_sums.h"
#include "tensor.h"
#include "topk_similarity/topk_similarity.h"
#include "truncated_svd/truncated_svd.h"
#include "unigram.h"
#include "vector_text.h"

namespace py = pybind11;

namespace {

const ofa::dlpack::ExchangeApi& exchange_api(PyTypeObject* type) {
  static PyTypeObject* last_type = nullptr;  // guarded by the GIL: nearly every call passes the same one or two types
  static const ofa::dlpack::ExchangeApi* last_api = nullptr;
  if (type == last_type) return *last_api;
  py::object capsule = py::getattr(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__", py::none());
  if (capsule.is_none()) throw py::type_error(std::string("expected a torch.Tensor, got ") + type->tp_name);
  auto* api = static_cast<ofa::dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!api) throw py::error_already_set();
  if (api->header.major != 1 || !api->tensor_from_py_object)
    throw py::type_error("this torch speaks another version of DLPack's C exchange API than 1.x");
  last_api = api;
  last_type = type;
  return *api;
}

}  // namespace

namespace pybind11::detail {

template <>
struct type_caster<ofa::Tensor> {
  PYBIND11_TYPE_CASTER(ofa::Tensor, const_name("torch.Tensor"));

  bool load(handle source, bool) {
    const ofa::dlpack::ExchangeApi& api = exchange_api(Py_TYPE(source.ptr()));
    ofa::dlpack::Tensor raw{};
    void* stream = nullptr;
    if (api.tensor_from_py_object(source.ptr(), &raw)) throw error_already_set();
    if (raw.device.type == ofa::dlpack::cuda && api.current_work_stream(raw.device.type, raw.device.id, &stream))
      throw error_already_set();
    value = ofa::Tensor(raw, stream);
    return true;
  }
};

}  // namespace pybind11::detail

PYBIND11_MODULE(OFA_MODULE, module) {
  using release = py::call_guard<py::gil_scoped_release>;

#if defined(OFA_CPU)
  module.def("isa", [] { return ofa::isa_names[static_cast<int>(ofa::isa())]; });
  module.def("best_isa", [] { return ofa::isa_names[static_cast<int>(ofa::best_isa())]; });
  module.def("set_isa", &ofa::set_isa, py::arg("name"));
  module.def("legacy_normal_rows", &ofa::legacy_normal::rows, release());
  module.def("pickle_scan", &ofa::pickle_scan::scan, release());
  module.def("subword_sums_add", &ofa::subword_sums::add, release());
  module.def("subword_sums_add_weighted", &ofa::subword_sums::add_weighted, release());
  module.def("unigram_build_trie", &ofa::unigram::build_trie, release());
  module.def("unigram_encode", &ofa::unigram::encode, release());
  module.def("vector_text_find_lines", &ofa::vector_text::find_lines, release());
  module.def("vector_text_parse", &ofa::vector_text::parse, release());
#else
  module.def("check_device", &ofa::check_device, "RuntimeError says why the current device cannot run these kernels");
#endif

#if defined(OFA_WITH_topk_similarity)
  module.def("topk_similarity_workspace", &ofa::topk_similarity::workspace);
  module.def("topk_similarity", &ofa::topk_similarity::forward, release());
#endif

#if defined(OFA_WITH_truncated_svd)
  module.def("truncated_svd_gram_workspace", &ofa::truncated_svd::gram_workspace);
  module.def("truncated_svd_gram", &ofa::truncated_svd::gram, release());
  module.def("truncated_svd_product_workspace", &ofa::truncated_svd::product_workspace);
  module.def("truncated_svd_product", &ofa::truncated_svd::product, release());
#endif

#if defined(OFA_WITH_factorized_embedding) && defined(OFA_CPU)
  module.def("factorized_embedding_forward_workspace", &ofa::factorized_embedding::forward_workspace);
  module.def("factorized_embedding_group_workspace", &ofa::factorized_embedding::group_workspace);
  module.def("factorized_embedding_backward_workspace", &ofa::factorized_embedding::backward_workspace);
  module.def("factorized_embedding_group", &ofa::factorized_embedding::group, release());
  module.def("factorized_embedding_forward", &ofa::factorized_embedding::forward, release());
  module.def("factorized_embedding_backward", &ofa::factorized_embedding::backward, release());
#elif defined(OFA_WITH_factorized_embedding)
  module.def("factorized_embedding_forward", &ofa::factorized_embedding::cuda_forward, release());
  module.def("factorized_embedding_backward_workspace", &ofa::factorized_embedding::cuda_backward_workspace);
  module.def("factorized_embedding_backward", &ofa::factorized_embedding::cuda_backward, release());
#endif

#if defined(OFA_WITH_factorized_cross_entropy) && defined(OFA_CPU)
  module.def("factorized_cross_entropy_forward_workspace", &ofa::factorized_cross_entropy::forward_workspace);
  module.def("factorized_cross_entropy_backward_workspace", &ofa::factorized_cross_entropy::backward_workspace);
  module.def("factorized_cross_entropy_forward", &ofa::factorized_cross_entropy::forward, release());
  module.def("factorized_cross_entropy_backward", &ofa::factorized_cross_entropy::backward, release());
#elif defined(OFA_WITH_factorized_cross_entropy)
  module.def("factorized_cross_entropy_step", &ofa::factorized_cross_entropy::cuda_step);
  module.def("factorized_cross_entropy_forward_pass", &ofa::factorized_cross_entropy::cuda_forward, release());
  module.def("factorized_cross_entropy_backward_pass", &ofa::factorized_cross_entropy::cuda_backward, release());
#endif
}
