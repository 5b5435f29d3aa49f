// Texts cut into the pieces of a unigram vocabulary of the largest total score (Kudo 2018, arXiv 1804.10959).
#pragma once

#include "tensor.h"

namespace ofa::unigram {

// A trie of the pieces, breadth first, so that the children of a node follow one another; returns the number of nodes.
// nodes[i] = (the first child of i, the piece that ends at i or -1), and one more pair that closes the last node.
int64_t build_trie(Tensor pieces,  // [bytes] uint8, UTF-8, in ascending order, one behind the other
                   Tensor starts,  // [n + 1] int64
                   Tensor ids,     // [n] int64, of equal pieces the last one counts
                   Tensor nodes,   // [bytes + 2, 2] int32
                   Tensor labels,  // [bytes + 2] uint8, the byte that leads to each node
                   int threads);

// The ids of each text of `text`, every one of which ends with the character U+0091, as the tokenizer with a Metaspace
// in front of the model gives them: a text begins with ▁, added where it is missing, spaces are ▁, each ▁ begins a
// word, and a word is the sequence of pieces of largest Σ score. A character that is no piece has the score
// `unknown_score`; several in a row are one `unknown`. The ids lie in a row; ends[i] is where those of text i end.
// Returns their number.
int64_t encode(Tensor nodes,   // [m, 2] int32
               Tensor labels,  // [m] uint8
               Tensor scores,  // [V] float64
               int64_t unknown, double unknown_score,
               Tensor text,  // [bytes] uint8
               Tensor ids,   // [bytes] int64
               Tensor ends,  // [texts] int64
               int threads);

}  // namespace ofa::unigram
