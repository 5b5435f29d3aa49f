#include "unigram.h"

#include <cstring>
#include <vector>

#include "parallel.h"

namespace ofa::unigram {
namespace {

struct Node {
  int32_t first_child, piece;
};

struct Model {
  const Node* nodes;
  const uint8_t* labels;
  const double* scores;
  int64_t node_count, unknown;
  double unknown_score;
};

constexpr uint8_t metaspace[] = {0xE2, 0x96, 0x81};
constexpr uint8_t separator[] = {0xC2, 0x91};

int64_t character_length(uint8_t lead) { return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4; }

bool begins_word(const uint8_t* at, const uint8_t* end) { return end - at >= 3 && !std::memcmp(at, metaspace, 3); }

// A worker's scratch: the text with its marks, and the best way to each of its bytes.
struct Lattice {
  struct Way {
    double score;
    int32_t from, id;
  };
  std::vector<uint8_t> text;
  std::vector<Way> ways;

  void set(const uint8_t* at, const uint8_t* end) {
    text.clear();
    if (at < end && *at != ' ' && !begins_word(at, end)) text.insert(text.end(), metaspace, metaspace + 3);
    for (; at < end; ++at)
      if (*at == ' ')
        text.insert(text.end(), metaspace, metaspace + 3);
      else
        text.push_back(*at);
  }

  int64_t* word(const Model& model, int64_t begin, int64_t end, int64_t* out) {
    ways.assign(end - begin + 1, {0.0, -1, -1});
    for (int64_t at = begin; at < end;) {
      const double here = ways[at - begin].score;
      const int64_t step = std::min(character_length(text[at]), end - at);
      bool single = false;
      const auto offer = [&](int64_t to, double score, int64_t id) {
        Way& way = ways[to - begin];
        if (way.from < 0 || score > way.score)
          way = {score, static_cast<int32_t>(at - begin), static_cast<int32_t>(id)};
      };
      const Node* node = model.nodes;
      for (int64_t next = at; next < end;) {
        const void* const child =
            std::memchr(model.labels + node->first_child, text[next], node[1].first_child - node->first_child);
        if (!child) break;
        node = model.nodes + (static_cast<const uint8_t*>(child) - model.labels);
        ++next;
        if (node->piece < 0) continue;
        offer(next, here + model.scores[node->piece], node->piece);
        single |= next - at == step;
      }
      if (!single) offer(at + step, here + model.unknown_score, model.unknown);
      at += step;
    }
    int64_t* const first = out;
    for (int64_t at = end - begin; at > 0; at = ways[at].from)
      if (out == first || ways[at].id != model.unknown || out[-1] != model.unknown) *out++ = ways[at].id;
    for (int64_t *low = first, *high = out; low < --high; ++low) std::swap(*low, *high);
    return out;
  }

  int64_t* encode(const Model& model, int64_t* out) {
    const int64_t size = static_cast<int64_t>(text.size());
    for (int64_t begin = 0; begin < size;) {
      int64_t end = begin + 1;
      while (end < size && !begins_word(text.data() + end, text.data() + size)) ++end;
      out = word(model, begin, end, out);
      begin = end;
    }
    return out;
  }
};

}  // namespace

int64_t build_trie(Tensor pieces, Tensor starts, Tensor ids, Tensor nodes, Tensor labels, int) {
  const int64_t bytes = pieces.numel(), count = ids.numel();
  const uint8_t* const text = pieces.data<uint8_t>("pieces", {bytes});
  const int64_t* const at = starts.data<int64_t>("starts", {count + 1});
  const int64_t* const numbers = ids.data<int64_t>("ids", {count});
  Node* const out = reinterpret_cast<Node*>(nodes.data<int32_t>("nodes", {bytes + 2, 2}));
  uint8_t* const label = labels.data<uint8_t>("labels", {bytes + 2});
  if (bytes > INT32_MAX - 2) throw std::invalid_argument("pieces must be shorter than 2 GiB");
  if (at[0] != 0 || at[count] != bytes) throw std::invalid_argument("starts must divide pieces");
  for (int64_t i = 0; i < count; ++i)
    if (at[i] > at[i + 1]) throw std::invalid_argument("starts must ascend");
  const auto length = [&](int64_t i) { return at[i + 1] - at[i]; };
  for (int64_t i = 1; i < count; ++i) {
    const int order = std::memcmp(text + at[i - 1], text + at[i], std::min(length(i - 1), length(i)));
    if (order > 0 || (order == 0 && length(i - 1) > length(i))) throw std::invalid_argument("pieces must ascend");
  }

  struct Range {
    int64_t begin, end;
  };
  std::vector<Range> level{{0, count}}, below;
  int64_t made = 1, depth = 0;
  label[0] = 0;
  for (int64_t node = 0; !level.empty(); ++depth, level.swap(below)) {
    below.clear();
    for (auto [begin, end] : level) {
      out[node] = {static_cast<int32_t>(made), -1};
      for (; begin < end && length(begin) == depth; ++begin)
        if (depth) out[node].piece = static_cast<int32_t>(numbers[begin]);
      ++node;
      while (begin < end) {
        const uint8_t byte = text[at[begin] + depth];
        int64_t next = begin + 1;
        while (next < end && text[at[next] + depth] == byte) ++next;
        label[made++] = byte;
        below.push_back({begin, next});
        begin = next;
      }
    }
  }
  out[made] = {static_cast<int32_t>(made), -1};
  label[made] = 0;
  return made;
}

int64_t encode(Tensor nodes, Tensor labels, Tensor scores, int64_t unknown, double unknown_score, Tensor text,
               Tensor ids, Tensor ends, int threads) {
  const int64_t bytes = text.numel(), texts = ends.numel(), pieces = scores.numel(), count = labels.numel();
  const Model model{reinterpret_cast<const Node*>(nodes.data<int32_t>("nodes", {count, 2})),
                    labels.data<uint8_t>("labels", {count}),
                    scores.data<double>("scores", {pieces}),
                    count - 1,
                    unknown,
                    unknown_score};
  const uint8_t* const characters = text.data<uint8_t>("text", {bytes});
  int64_t* const out = ids.data<int64_t>("ids", {bytes});
  int64_t* const end_of = ends.data<int64_t>("ends", {texts});
  if (unknown < 0 || unknown >= pieces) throw std::invalid_argument("unknown must be a piece");
  if (count < 2) throw std::invalid_argument("labels must hold a root and an end");
  int32_t before = 1;
  for (int64_t i = 0; i < count; ++i) {
    if (model.nodes[i].first_child < before || model.nodes[i].first_child > model.node_count)
      throw std::invalid_argument("nodes must be those of a trie");
    if (model.nodes[i].piece >= pieces) throw std::invalid_argument("nodes must name pieces that have a score");
    before = model.nodes[i].first_child;
  }

  std::vector<int64_t> starts(texts + 1, 0);
  for (int64_t i = 0; i < texts; ++i) {
    const void* const found = memmem(characters + starts[i], bytes - starts[i], separator, 2);
    if (!found) throw std::invalid_argument("text must hold an end for each of " + std::to_string(texts) + " texts");
    starts[i + 1] = static_cast<const uint8_t*>(found) - characters + 2;
  }
  if (starts[texts] != bytes) throw std::invalid_argument("text must end with the last of its texts");

  // A text of n bytes has at most n + 1 pieces, with the one for its mark, and its end is two bytes long.
  constexpr int64_t group = 256;
  std::vector<Lattice> lattices(threads);
  parallel_for((texts + group - 1) / group, threads, [&](int64_t task, int worker) {
    Lattice& lattice = lattices[worker];
    for (int64_t i = task * group; i < std::min(texts, (task + 1) * group); ++i) {
      lattice.set(characters + starts[i], characters + starts[i + 1] - 2);
      end_of[i] = lattice.encode(model, out + starts[i]) - out;
    }
  });
  int64_t filled = 0;
  for (int64_t i = 0; i < texts; ++i) {
    const int64_t length = end_of[i] - starts[i];
    std::memmove(out + filled, out + starts[i], length * sizeof(int64_t));
    end_of[i] = filled += length;
  }
  return filled;
}

}  // namespace ofa::unigram
