#include "parallel.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace ofa {
namespace {

struct Job {
  void (*body)(void*, int64_t, int);
  void* context;
  int64_t tasks;
  std::atomic<int64_t> next{0};
  std::atomic<int> workers{0};
};

void work(void* job_pointer) {
  Job& job = *static_cast<Job*>(job_pointer);
  const int worker = job.workers.fetch_add(1, std::memory_order_relaxed);
  for (int64_t task; (task = job.next.fetch_add(1, std::memory_order_relaxed)) < job.tasks;)
    job.body(job.context, task, worker);
}

using GompParallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

// Set in a forked child: the OpenMP team of its parent is gone there, and asking for it hangs.
std::atomic<bool> forked{false};

GompParallel gomp_parallel() {
  static const bool hooked = [] {
    pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
    return true;
  }();
  (void)hooked;
  // Not cached when absent: torch may be imported after the first call.
  static std::atomic<GompParallel> found{nullptr};
  GompParallel function = found.load(std::memory_order_relaxed);
  if (!function) {
    function = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    found.store(function, std::memory_order_relaxed);
  }
  return forked.load() ? nullptr : function;
}

void run_on_own_threads(Job& job, int threads) {
  std::vector<std::thread> team;
  team.reserve(threads - 1);
  for (int i = 1; i < threads; ++i) team.emplace_back(work, &job);
  work(&job);
  for (auto& thread : team) thread.join();
}

}  // namespace

void parallel_for(int64_t tasks, int threads, void (*body)(void*, int64_t, int), void* context) {
  Job job{body, context, tasks};
  if (threads <= 1 || tasks <= 1) return work(&job);
  // Always the full team, whatever the number of tasks: libgomp takes milliseconds to resize one.
  if (GompParallel gomp = gomp_parallel())
    gomp(work, &job, static_cast<unsigned>(threads), 0);
  else
    run_on_own_threads(job, threads);
}

}  // namespace ofa
