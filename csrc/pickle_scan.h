// Where a pickle stops making sense, found without building anything of it.
#pragma once

#include <utility>

#include "tensor.h"

namespace ofa::pickle_scan {

// (place, number of opcodes before it) of STOP, or of the first opcode that is unknown, whose argument does not end
// within the data, that announces a frame longer than the rest, or that puts an object at a memo index larger than the
// number of opcodes before it; (bytes, count) where the data ends first.
//
// arguments[opcode] = 16 * kind + n. Kind 0: n bytes; 1: a length in n bytes and that many more; 2: n lines; 15: no
// opcode.
std::pair<int64_t, int64_t> scan(Tensor data,        // [bytes] uint8
                                 Tensor arguments);  // [256] uint8

}  // namespace ofa::pickle_scan
