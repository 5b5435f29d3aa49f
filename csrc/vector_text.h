// Word vectors as text: each line a word and its numbers, as word2vec, fastText and GloVe write them.
#pragma once

#include "tensor.h"

namespace ofa::vector_text {

// Where each line of text begins, and behind the last of them where the last one ends: the number of whole lines, at
// most capacity - 1. What follows the last newline is no whole line.
int64_t find_lines(Tensor text,     // [bytes] uint8
                   Tensor starts);  // [capacity] int64

// rows[i] = the numbers of line i, correctly rounded to double, then to float, and word_ends[i] = where its word ends.
// word_ends[i] = -1 where a line is not simply a word without white space, `dim` finite decimal numbers, and spaces or
// tabs between them; then rows[i] is undefined.
void parse(Tensor text,       // [bytes] uint8
           Tensor starts,     // [lines + 1] int64
           Tensor rows,       // [lines, dim] float32
           Tensor word_ends,  // [lines] int64
           int threads);

}  // namespace ofa::vector_text
