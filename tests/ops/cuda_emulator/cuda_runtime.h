// CUDA kernels on a CPU, as far as csrc/*.cu use CUDA: the threads of a block are fibers of one operating-system thread
// that hand over at barriers and at the instructions of whole warps. Blocks run one after the other, odd ones with
// their threads in reverse order. A barrier or warp instruction that some threads never reach aborts the process.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static thread_local
#define __grid_constant__

struct dim3 {
  int64_t x, y, z;
  dim3(int64_t x = 1, int64_t y = 1, int64_t z = 1) : x(x), y(y), z(z) {}
};
struct Index {
  int x = 0, y = 0, z = 0;
};
struct alignas(8) float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrMultiProcessorCount };
inline int emulated_shared_memory() {  // that of a small GPU if OFA_SHARED_KIB does not say another's
  static const char* const kib = std::getenv("OFA_SHARED_KIB");
  return (kib ? std::atoi(kib) : 99) << 10;
}

inline const char* cudaGetErrorString(cudaError_t error) { return error ? "invalid value" : "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
struct cudaFuncAttributes {
  int numRegs = 255;  // as if compiled for the GPU at hand, whatever that has
};
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* own, const void*) { return *own = {}, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  return *value = which == cudaDevAttrMultiProcessorCount ? 7 : emulated_shared_memory(), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* data, int byte, size_t bytes, cudaStream_t) {
  return std::memset(data, byte, bytes), cudaSuccess;
}

namespace emulator {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "CUDA emulator: %s\n", what);
  std::abort();
}

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

using Product = std::function<void()>;  // of a warpgroup, this thread's part of the sums

// Copies and products that are under way happen when they are waited for, as late as they may.
struct Barrier {
  int arrivals = 0, arrived = 0;
  int64_t bytes = 0;  // that are still to come in this phase
  uint32_t phase = 0;
  std::vector<Copy> copies;
};

struct Fiber {
  ucontext_t start;
  void* at[5];
  bool started = false, done = false;
  Index thread;
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> open;
  std::vector<std::vector<Product>> product_groups;
  std::vector<Product> open_products;
};

struct Warp {
  struct Deposit {
    uint32_t words[6];
    uint64_t value;
  };
  Deposit deposits[2][32];  // of this instruction and the next one
  int64_t turn = 0;
  int arrived = 0;
  const char* instruction = nullptr;
};

struct Block {
  int threads = 0, alive = 0, waiting = 0, now = 0, idle = 0;
  int64_t barrier = 0;
  bool reverse = false;
  Index index;
  dim3 grid, size;
  std::function<void()> body;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::unique_ptr<uint8_t[]> stacks;
  std::map<const void*, Barrier> barriers;
  std::vector<uint8_t> memory;  // dynamic shared memory, exactly as much as was asked for
  uint8_t* shared = nullptr;
  ucontext_t outside;
};

inline Block*& block() {
  static thread_local Block* current = nullptr;
  return current;
}
inline Fiber& fiber() { return block()->fibers[block()->now]; }

constexpr size_t stack_bytes = 64 << 10;

// Without the system's help, which is slow, and unseen by the sanitizers, for which a jump unwinds a stack.
#define OFA_UNSEEN __attribute__((noinline, no_sanitize("address", "undefined")))

OFA_UNSEEN inline void go_to(Fiber& next) {
  if (next.started) __builtin_longjmp(next.at, 1);
  next.started = true;
  setcontext(&next.start);
}

// The next of `count` threads that is not done: of a warp, or of all.
inline int next_thread(int count) {
  const Block& b = *block();
  const int first = b.now / count * count;
  int next = b.now;
  do next = first + (next - first + (b.reverse ? count - 1 : 1)) % count;
  while (b.fibers[next].done && next != b.now);
  return next;
}

OFA_UNSEEN inline void hand_over(int count) {
  Block& b = *block();
  const int before = b.now;
  b.now = next_thread(count);
  if (b.now != before && !__builtin_setjmp(b.fibers[before].at)) go_to(b.fibers[b.now]);
}

// A thread that waits for others hands over; if nothing happens while all do, none of them will ever go on.
// Within a warp its threads take turns, so that it goes as far as it can before the others do: what races is seen.
template <class Reached>
void wait_for(int count, const Reached& reached) {
  while (!reached()) {
    if (++block()->idle > 2 * block()->threads) fail("threads wait for others that do not come");
    hand_over(count);
  }
}

inline void barrier() {
  Block& b = *block();
  const int64_t mine = b.barrier;
  b.idle = 0;
  if (++b.waiting == b.alive) {
    b.waiting = 0;
    ++b.barrier;
    return;
  }
  wait_for(b.threads, [&] { return b.barrier != mine; });
}

// All threads of a warp leave something and go on when all have.
inline const Warp::Deposit* exchange(const char* instruction, const Warp::Deposit& own) {
  Block& b = *block();
  Warp& warp = b.warps[b.now / 32];
  const int64_t mine = warp.turn;
  if (warp.arrived && std::strcmp(warp.instruction, instruction)) fail("threads of a warp at different instructions");
  warp.instruction = instruction;
  warp.deposits[mine % 2][b.now % 32] = own;
  b.idle = 0;
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    ++warp.turn;
  } else {
    wait_for(32, [&] { return warp.turn != mine; });
  }
  return warp.deposits[mine % 2];
}

// The life of a thread: what the kernel says, then over to the others.
inline void live() {
  block()->body();
  Block& b = *block();
  Fiber& own = b.fibers[b.now];
  if (!own.open.empty() || !own.groups.empty()) fail("copies that nobody waits for");
  if (!own.open_products.empty() || !own.product_groups.empty()) fail("products that nobody waits for");
  own.done = true;
  --b.alive;
  b.idle = 0;
  if (b.alive && b.waiting == b.alive) b.waiting = 0, ++b.barrier;
  if (!b.alive) {
    for (const auto& [_, barrier] : b.barriers)
      if (!barrier.copies.empty()) fail("copies that nobody waits for");
    setcontext(&b.outside);
  }
  b.now = next_thread(b.threads);
  go_to(b.fibers[b.now]);
}

inline void run_block(Block& b) {
  b.alive = b.threads;
  b.waiting = b.idle = 0;
  b.now = b.reverse ? b.threads - 1 : 0;
  b.warps.assign(b.threads / 32, Warp{});
  b.barriers.clear();
  std::memset(b.shared, 0xff, b.memory.data() + b.memory.size() - b.shared);
  for (int i = 0; i < b.threads; ++i) {
    Fiber& f = b.fibers[i];
    f.started = f.done = false;
    f.thread.x = i;
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = b.stacks.get() + i * stack_bytes;
    f.start.uc_stack.ss_size = stack_bytes;
    f.start.uc_link = nullptr;
    makecontext(&f.start, live, 0);
  }
  b.fibers[b.now].started = true;
  swapcontext(&b.outside, &b.fibers[b.now].start);
}

inline void run(dim3 grid, int threads, int64_t shared, std::function<void()> body) {
  if (threads % 32) fail("a block of whole warps is expected");
  Block b;
  b.threads = threads;
  b.grid = grid;
  b.size = dim3(threads);
  b.body = std::move(body);
  b.fibers = std::vector<Fiber>(threads);
  b.stacks.reset(new uint8_t[threads * stack_bytes]);
  b.memory.resize(shared + 128);
  b.shared = b.memory.data() + b.memory.size() - shared;  // what lies behind it belongs to nobody
  b.shared -= reinterpret_cast<uintptr_t>(b.shared) % 128;
  b.memory.resize(b.shared + shared - b.memory.data());
  b.memory.shrink_to_fit();
  b.shared = b.memory.data() + b.memory.size() - shared;
  Block* const before = block();
  block() = &b;
  for (b.index.z = 0; b.index.z < grid.z; ++b.index.z)
    for (b.index.y = 0; b.index.y < grid.y; ++b.index.y)
      for (b.index.x = 0; b.index.x < grid.x; ++b.index.x) {
        b.reverse = b.index.x % 2;
        run_block(b);
      }
  block() = before;
}

}  // namespace emulator

#define threadIdx (emulator::fiber().thread)
#define blockIdx (emulator::block()->index)
#define blockDim (emulator::block()->size)
#define gridDim (emulator::block()->grid)

using std::max;
using std::min;

inline void __syncthreads() { emulator::barrier(); }

template <class T>
T shuffled(const char* instruction, T value, int lane) {
  emulator::Warp::Deposit own{};
  static_assert(sizeof(T) <= sizeof own.value);
  std::memcpy(&own.value, &value, sizeof value);
  std::memcpy(&value, &emulator::exchange(instruction, own)[lane].value, sizeof value);
  return value;
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return shuffled("shfl", value, lane);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return shuffled("shfl.xor", value, (emulator::block()->now % 32) ^ mask);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int step) {
  const int lane = emulator::block()->now % 32;
  return shuffled("shfl.up", value, lane < step ? lane : lane - step);
}

inline unsigned __ballot_sync(unsigned, bool mine) {
  emulator::Warp::Deposit own{};
  own.value = mine;
  const auto* const all = emulator::exchange("ballot", own);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<unsigned>(all[i].value) << i;
  return bits;
}
inline bool __any_sync(unsigned, bool mine) { return __ballot_sync(~0u, mine) != 0; }
inline void __syncwarp() { emulator::exchange("syncwarp", {}); }

template <class Combine>
unsigned reduce(const char* instruction, unsigned mine, const Combine& combine) {
  emulator::Warp::Deposit own{};
  own.value = mine;
  const auto* const all = emulator::exchange(instruction, own);
  unsigned total = static_cast<unsigned>(all[0].value);
  for (int i = 1; i < 32; ++i) total = combine(total, static_cast<unsigned>(all[i].value));
  return total;
}
inline unsigned __reduce_add_sync(unsigned, unsigned mine) { return reduce("redux.add", mine, std::plus<unsigned>()); }
inline unsigned __reduce_min_sync(unsigned, unsigned mine) {
  return reduce("redux.min", mine, [](unsigned a, unsigned b) { return std::min(a, b); });
}
inline unsigned __reduce_max_sync(unsigned, unsigned mine) {
  return reduce("redux.max", mine, [](unsigned a, unsigned b) { return std::max(a, b); });
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }

template <class T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at += value;
  return before;
}
template <class T>
T atomicMin(T* at, T value) {
  const T before = *at;
  *at = std::min(before, value);
  return before;
}
template <class T>
T atomicMax(T* at, T value) {
  const T before = *at;
  *at = std::max(before, value);
  return before;
}

template <class To, class From>
To same_bits(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline uint32_t __float_as_uint(float x) { return same_bits<uint32_t>(x); }
inline float __uint_as_float(uint32_t x) { return same_bits<float>(x); }
inline float __double2float_rd(double x) {
  const float near = static_cast<float>(x);
  return near > x ? std::nextafter(near, -HUGE_VALF) : near;
}
inline int __float2int_rd(float x) {
  if (x != x) return 0;
  const float low = std::floor(x);
  return low >= 0x1p31f ? INT32_MAX : low < -0x1p31f ? INT32_MIN : static_cast<int>(low);
}
inline long long __double_as_longlong(double x) { return same_bits<long long>(x); }
