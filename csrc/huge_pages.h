// Memory that is about to be written for the first time: with small pages, the page faults of a large output take
// longer than computing it.
#pragma once

#include <sys/mman.h>

#include <cstdint>

#include "parallel.h"

namespace ofa {

constexpr uintptr_t huge_page = 1 << 21;

struct Range {
  uintptr_t first, last;
};

// Asks for huge pages under `bytes` at `data`, and returns those that lie in it whole.
inline Range prefer_huge_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data), first = (begin + huge_page - 1) & ~(huge_page - 1);
  const uintptr_t last = (begin + bytes) & ~(huge_page - 1);
  if (first < last && !madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE)) return {first, last};
#else
  (void)data, (void)bytes;
#endif
  return {0, 0};
}

// The same, and writes a zero into each for which wanted(begin, end), its bytes, is true. Each is touched by one thread
// alone: two that meet in one would both clear all of it.
template <class Wanted>
void fault_in(void* data, int64_t bytes, int threads, Wanted&& wanted) {
  const Range pages = prefer_huge_pages(data, bytes);
  parallel_for(static_cast<int64_t>((pages.last - pages.first) / huge_page), threads, [&](int64_t task, int) {
    const uintptr_t at = pages.first + task * huge_page, begin = reinterpret_cast<uintptr_t>(data);
    if (wanted(static_cast<int64_t>(at - begin), static_cast<int64_t>(at - begin + huge_page)))
      *reinterpret_cast<volatile char*>(at) = 0;
  });
}

}  // namespace ofa
