// Memory that is about to be written for the first time: with small pages, the page faults of a large output take
// longer than computing it.
#pragma once

#include <sys/mman.h>

#include <cstdint>

#include "parallel.h"

namespace ofa {

// Asks for huge pages under `bytes` at `data` and writes a zero into each for which wanted(begin, end), its bytes, is
// true. Each is touched by one thread alone: two that meet in one would both clear all of it.
template <class Wanted>
void fault_in(void* data, int64_t bytes, int threads, Wanted&& wanted) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 1 << 21;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data), first = (begin + page - 1) & ~(page - 1);
  const uintptr_t last = (begin + bytes) & ~(page - 1);
  if (first >= last) return;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  parallel_for(static_cast<int64_t>((last - first) / page), threads, [&](int64_t task, int) {
    const uintptr_t at = first + task * page;
    if (wanted(static_cast<int64_t>(at - begin), static_cast<int64_t>(at - begin + page)))
      *reinterpret_cast<volatile char*>(at) = 0;
  });
#else
  (void)data, (void)bytes, (void)threads, (void)wanted;
#endif
}

}  // namespace ofa
