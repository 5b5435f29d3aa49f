// What _cuda tells of the machine.
#pragma once

namespace ofa {

int device_count();  // throws std::runtime_error with CUDA's own words where there is no driver or no device
int runtime_version();

}  // namespace ofa
