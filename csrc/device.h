// What _cuda tells of the machine.
#pragma once

namespace ofa {

// Throws std::runtime_error with CUDA's own words where the current device cannot run what this module was built for:
// there is none, its driver is too old, or the module has no code for it.
void check_device();

}  // namespace ofa
