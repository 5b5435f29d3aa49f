// A checked view of a tensor of any framework that offers DLPack's C exchange API (torch >= 2.10).
// The ABI structures below restate the DLPack 1.x specification; no header of torch or of DLPack is needed.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "dtype.h"

namespace ofa {

namespace dlpack {
struct Device {
  int32_t type;  // 1: CPU, 2: CUDA
  int32_t id;
};
constexpr int32_t cuda = 2;  // as a device type
struct DataType {
  uint8_t code;  // 0: int, 1: uint, 2: float, 4: bfloat, 6: bool
  uint8_t bits;
  uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct ExchangeApi {
  struct Header {
    uint32_t major, minor;
    Header* previous;
  } header;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object;
  void* managed_tensor_to_py_object;
  int (*tensor_from_py_object)(void* object, Tensor* out);
  int (*current_work_stream)(int32_t device_type, int32_t device_id, void** out);
};
}  // namespace dlpack

// Borrows the tensor of the Python object it was made from: valid for the duration of the call.
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(const dlpack::Tensor& raw, void* stream = nullptr) : raw_(raw), stream_(stream) {}

  int64_t dim() const { return raw_.ndim; }
  int64_t size(int axis) const { return raw_.shape[axis]; }
  int64_t numel() const {
    int64_t count = 1;
    for (int i = 0; i < raw_.ndim; ++i) count *= raw_.shape[i];
    return count;
  }
  int device_type() const { return raw_.device.type; }
  int device() const { return raw_.device.id; }
  void* stream() const { return stream_; }  // of a CUDA tensor: the stream on which its framework works now

  Dtype dtype() const {
    const auto [code, bits, lanes] = raw_.dtype;
    if (lanes != 1) return Dtype::other;
    if (code == 2) return bits == 32 ? Dtype::f32 : bits == 16 ? Dtype::f16 : bits == 64 ? Dtype::f64 : Dtype::other;
    if (code == 4 && bits == 16) return Dtype::bf16;
    if (code == 0) return bits == 64 ? Dtype::i64 : bits == 32 ? Dtype::i32 : bits == 8 ? Dtype::i8 : Dtype::other;
    if (code == 1 && bits == 8) return Dtype::u8;
    if (code == 6) return Dtype::boolean;
    return Dtype::other;
  }

  // The contiguous data as T*, or an error that names the argument.
  template <class T>
  T* data(const char* argument, std::initializer_list<int64_t> shape) const {
    if (dtype() != dtype_of<T>())
      fail(argument, std::string("must be ") + name(dtype_of<T>()) + ", got " + name(dtype()));
    return static_cast<T*>(data(argument, shape));
  }
  void* data(const char* argument, std::initializer_list<int64_t> shape) const {
    bool same = static_cast<int64_t>(shape.size()) == raw_.ndim;
    for (int i = 0; same && i < raw_.ndim; ++i) same = raw_.shape[i] == shape.begin()[i];
    if (!same) {
      std::string want, got;
      for (int64_t n : shape) want += (want.empty() ? "" : ", ") + std::to_string(n);
      for (int i = 0; i < raw_.ndim; ++i) got += (i ? ", " : "") + std::to_string(raw_.shape[i]);
      fail(argument, "must have shape [" + want + "], got [" + got + "]");
    }
    int64_t stride = 1;
    for (int i = raw_.ndim - 1; raw_.strides && i >= 0; --i) {
      if (raw_.shape[i] > 1 && raw_.strides[i] != stride && numel()) fail(argument, "must be contiguous");
      stride *= raw_.shape[i];
    }
    return static_cast<char*>(raw_.data) + raw_.byte_offset;
  }

 private:
  [[noreturn]] static void fail(const char* argument, const std::string& what) {
    throw std::invalid_argument(std::string(argument) + " " + what);
  }
  dlpack::Tensor raw_{};
  void* stream_ = nullptr;
};

}  // namespace ofa
