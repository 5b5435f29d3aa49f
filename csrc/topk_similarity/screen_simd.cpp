// The screen multiplies bytes where the CPU has instructions for it (four to thirty times the rate of floats), else
// floats. On plain AVX2 and AVX-512, bytes would need three instructions for what one does to half as many floats.
#if defined(__AVX512VNNI__)
#  include "topk_similarity/screen_bytes.h"
#else
#  include "topk_similarity/screen_floats.h"
#endif

namespace ofa {
namespace OFA_ISA {

extern const TopkScreen topk_screen = {query_tile,        key_tile,       step,        sizeof(Code), rounding,
                                       rounding_per_term, encode_queries, encode_keys, pack,         screen,
                                       kth_largest,       visitors,       scratch_size};

}  // namespace OFA_ISA
}  // namespace ofa
