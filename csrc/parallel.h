// Threads for CPU kernels: torch's own OpenMP pool where the process has one, else a small pool of ours.
#pragma once

#include <cstdint>

namespace ofa {

// Calls body(context, task, worker) for every task in [0, tasks), with workers in [0, threads). Tasks are handed out in
// order, so results must not depend on which worker runs a task. `body` must not throw.
void parallel_for(int64_t tasks, int threads, void (*body)(void* context, int64_t task, int worker), void* context);

template <class Body>
void parallel_for(int64_t tasks, int threads, Body&& body) {
  auto call = [](void* context, int64_t task, int worker) { (*static_cast<Body*>(context))(task, worker); };
  parallel_for(tasks, threads, static_cast<void (*)(void*, int64_t, int)>(call), &body);
}

}  // namespace ofa
