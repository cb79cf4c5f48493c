// Attention within prompt trees, forward and backward, without a score that nobody sees: included by kernels.cpp.
//
// After FlashAttention-2 (Dao 2023, arXiv 2307.08691): scores are computed again in the backward pass, of which only the
// softmax's logarithms are kept. A task is one head of one tree, so that a prompt's keys are packed once for all of its
// branches and its gradients have one writer; keys are read in blocks of 32, which end past the last one in zeros.

constexpr int64_t kQueries = 128;  // queries of a span against which keys are read at a time in the backward pass

inline int64_t whole(int64_t count) { return (count + kChunk - 1) / kChunk * kChunk; }

struct Span {
  int64_t start, length;  // in the packed sequence
};

// The layout below is that of the structure of the same name in operations.py.
struct Trees {
  int64_t tokens, heads, kv_heads, size;
  int64_t count;  // of trees
  const Span* prompts;
  const Span* branches;         // of all trees, tree by tree
  const int64_t* first_branch;  // of each tree, and where the last one's end
  int64_t window;               // keys that a query sees at most, itself one of them
  float scaling;
};

// Rows `step` elements apart to (count, size), and zeros up to a whole number of chunks.
template <class T>
void gather(const T* from, int64_t step, int64_t count, int64_t size, T* to) {
  for (int64_t row = 0; row < count; ++row) std::memcpy(to + row * size, from + row * step, size * sizeof(T));
  std::memset(static_cast<void*>(to + count * size), 0, (whole(count) - count) * size * sizeof(T));
}

// Rows (count, size) as panels of which rows are the outputs: 16 rows each, `size` inputs, of which floats or pairs of
// bfloat16 stay together.
template <class T>
void pack_outputs(const T* rows, int64_t count, int64_t size, T* panels) {
  constexpr int64_t together = sizeof(float) / sizeof(T);
  const int64_t width = size / together, squares = width / kNative * kNative;
  for (int64_t first = 0; first < count; first += kLanes, panels += size * kLanes) {
    const T* from = rows + first * size;
    transpose(reinterpret_cast<const float*>(from), width, kLanes, squares, reinterpret_cast<float*>(panels), kLanes);
    for (int64_t i = squares; i < width; ++i)
      for (int lane = 0; lane < kLanes; ++lane)
        std::memcpy(panels + (i * kLanes + lane) * together, from + lane * size + i * together, sizeof(float));
  }
}

// Rows (count, size) as panels of which rows are the inputs: 16 of their `size` columns each; `room` inputs of a panel.
inline void pack_inputs(const float* rows, int64_t count, int64_t size, float* panels, int64_t room) {
  for (int64_t column = 0; column < size; column += kLanes, panels += room * kLanes)
    for (int64_t row = 0; row < count; ++row) store(panels + row * kLanes, load(rows + row * size + column));
}

inline void pack_inputs(const BFloat16* rows, int64_t count, int64_t size, BFloat16* panels, int64_t room) {
  for (int64_t column = 0; column < size; column += kLanes, panels += room * kLanes) {
    for (int64_t row = 0; row < count; row += 2) {
      const BFloat16 *first = rows + row * size + column, *second = first + size;
      uint32_t pairs[kLanes];  // nothing else lies here: the compiler uses vectors
      for (int lane = 0; lane < kLanes; ++lane) pairs[lane] = first[lane].bits | uint32_t(second[lane].bits) << 16;
      std::memcpy(panels + row * kLanes, pairs, sizeof(pairs));
    }
  }
}

// Who sees whom in a span: its queries, counted from 0, see `past` keys, which take the rows before `own`, and their own.
struct View {
  int64_t past, own, window;

  int64_t distance(int64_t query, int64_t key) const { return key < own ? past + query - key : query - (key - own); }

  // Whether 32 queries from `query` on see 32 keys from `key` on, each of them each.
  bool whole_block(int64_t query, int64_t key) const {
    const bool seen = key < own ? key + kChunk <= past : key - own + kChunk - 1 <= query;
    return seen && distance(query + kChunk - 1, key) < window;
  }

  // 1 in those lanes of 16 queries, from `query` on, that see the key, 0 in the others.
  Vec seen(int64_t query, int64_t key) const {
    if (key < own && key >= past) return Vec{};
    return within(float(distance(query, key)) + load(kLane), float(window));
  }
};

// A tree, and one of its heads.
template <class T>
struct HeadOfTree {
  const Trees& trees;
  int64_t tree, head;
  int64_t kv_head = head / (trees.heads / trees.kv_heads);
  Span prompt = trees.prompts[tree];
  int64_t own = whole(prompt.length);  // where a branch's keys begin
  int64_t room = own + [this] {        // keys that a branch sees at most, in whole chunks
    int64_t longest = 0;
    for (int64_t i = trees.first_branch[tree]; i < trees.first_branch[tree + 1]; ++i)
      longest = std::max(longest, trees.branches[i].length);
    return whole(longest);
  }();

  int64_t query_at(int64_t token) const { return (token * trees.heads + head) * trees.size; }
  int64_t key_at(int64_t token) const { return (token * trees.kv_heads + kv_head) * trees.size; }
  int64_t query_step() const { return trees.heads * trees.size; }
  int64_t key_step() const { return trees.kv_heads * trees.size; }

  // Call for the prompt, then for each branch: with its span, and who sees whom in it.
  template <class Visit>
  void for_spans(const Visit& visit) const {
    visit(prompt, View{0, 0, trees.window});
    for (int64_t i = trees.first_branch[tree]; i < trees.first_branch[tree + 1]; ++i)
      visit(trees.branches[i], View{prompt.length, own, trees.window});
  }
};

// out (tokens, heads, size) and, for each token and head, the logarithm of the sum of its exponentials.
template <class T>
void attend_trees(const Trees& trees, const T* q, const T* k, const T* v, T* out, float* logsums) {
  const int64_t size = trees.size;
  const bool tiled = by_tiles(q, kChunk);
  const Tiles tiles(tiled);
  std::vector<T> rows, keys, values, queries(kChunk * size), weights;
  std::vector<float> scores;
#pragma omp for schedule(dynamic, 1)
  for (int64_t task = 0; task < trees.count * trees.heads; ++task) {
    const HeadOfTree<T> of{trees, task / trees.heads, task % trees.heads};
    const int64_t room = of.room;
    rows.resize(room * size), keys.resize(room * size), values.resize(room * size);
    scores.resize(kChunk * room), weights.resize(kChunk * room);
    of.for_spans([&](Span span, View view) {
      const auto place = [&](const T* states) {
        gather(states + of.key_at(span.start), of.key_step(), span.length, size, rows.data());
      };
      place(k), pack_outputs(rows.data(), whole(span.length), size, keys.data() + view.own * size);
      place(v), pack_inputs(rows.data(), whole(span.length), size, values.data() + view.own * kLanes, room);

      for (int64_t first = 0; first < span.length; first += kChunk) {
        const int num = int(std::min<int64_t>(kChunk, span.length - first));
        const int64_t seen = view.own + first + kChunk;  // keys, the last ones by the last queries only
        gather(q + of.query_at(span.start + first), of.query_step(), num, size, queries.data());
        for (int64_t key = 0; key < seen; key += kColumns) {
          const T* panel = keys.data() + key * size;
          multiply(Factors<T>{queries.data(), size, size, panel, panel + size * kLanes}, num, scores.data() + key, room,
                   tiled);
        }
        float inverse[kChunk];
        for (int m = 0; m < num; ++m) {
          float* row = scores.data() + m * room;
          const auto hide = [&](int64_t from, int64_t to) {
            if (from < to) std::fill(row + from, row + to, -INFINITY);
          };
          const int64_t query = first + m, position = view.past + query;
          const int64_t from = std::max<int64_t>(0, position - view.window + 1);  // the first key that is seen
          hide(0, std::min(from, view.past)), hide(view.past, view.own);
          hide(view.own, view.own + from - view.past), hide(view.own + query + 1, seen);
          const auto [peak, total] = exponentials(row, seen, trees.scaling, weights.data() + m * room);
          inverse[m] = 1.0f / total;
          logsums[(span.start + query) * trees.heads + of.head] = peak * trees.scaling + std::log(total);
        }
        alignas(64) float block[kChunk * kColumns];
        for (int64_t column = 0; column < size; column += kColumns) {
          const T* panel = values.data() + column * room;
          multiply(Factors<T>{weights.data(), room, seen, panel, panel + room * kLanes}, num, block, kColumns, tiled);
          for (int m = 0; m < num; ++m)
            for (int i = 0; i < kColumns; i += kLanes)
              store(out + of.query_at(span.start + first + m) + column + i, load(block + m * kColumns + i) * inverse[m]);
        }
      }
    });
  }
}

// What the backward pass starts from, arrays (tokens, heads, size), and logsums (tokens, heads).
template <class T>
struct Attended {
  const T *q, *k, *v, *out;
  const float* logsums;
  const T* grad_out;
};

// The backward pass of one head of one tree: a thread's memory for it, and its steps.
template <class T>
struct HeadBackward {
  const Trees& trees;
  const Attended<T>& given;
  const bool tiled;
  const int64_t size = trees.size;
  int64_t room = 0;  // keys

  std::vector<T> keys{}, keys_by_column{}, values{};
  std::vector<float> grad_keys{}, grad_values{};
  std::vector<T> queries = of_queries(), queries_out = of_queries(), queries_in = of_queries();  // up to kQueries of them
  std::vector<T> grads = of_queries(), grads_out = of_queries(), grads_in = of_queries();
  std::vector<T> weights{}, grad_scores{}, grad_scores_in{};  // of each key and query
  alignas(64) float logsum[kQueries], shared[kQueries];       // shared: the mean gradient of a query's weights
  alignas(64) float block[kChunk * kColumns], grad_block[kChunk * kColumns];

  std::vector<T> of_queries() const { return std::vector<T>(kQueries * size); }

  void begin(const HeadOfTree<T>& of) {
    room = of.room;
    for (auto* rows : {&keys, &keys_by_column, &values}) rows->resize(room * size);
    for (auto* sums : {&grad_keys, &grad_values}) sums->assign(room * size, 0.0f);
    for (auto* scores : {&weights, &grad_scores, &grad_scores_in}) scores->resize(room * kQueries);
  }

  void place_keys(const HeadOfTree<T>& of, Span span, int64_t own) {
    gather(given.k + of.key_at(span.start), of.key_step(), span.length, size, keys.data() + own * size);
    gather(given.v + of.key_at(span.start), of.key_step(), span.length, size, values.data() + own * size);
    const int64_t end = own + whole(span.length);
    transpose(keys.data() + own * size, size, end - own, size, keys_by_column.data() + own, room);
    for (auto* sums : {&grad_keys, &grad_values}) std::fill(sums->begin() + own * size, sums->begin() + end * size, 0.0f);
  }

  void place_queries(const HeadOfTree<T>& of, int64_t token, int64_t num) {
    const int64_t width = whole(num), at = of.query_at(token), step = of.query_step();
    gather(given.q + at, step, num, size, queries.data());
    gather(given.grad_out + at, step, num, size, grads.data());
    pack_outputs(queries.data(), width, size, queries_out.data());
    pack_outputs(grads.data(), width, size, grads_out.data());
    pack_inputs(queries.data(), width, size, queries_in.data(), width);
    pack_inputs(grads.data(), width, size, grads_in.data(), width);
    for (int64_t j = 0; j < width; ++j) {
      logsum[j] = j < num ? given.logsums[(token + j) * trees.heads + of.head] : INFINITY;
      Vec products{};
      for (int64_t i = 0; j < num && i < size; i += kLanes)
        products += load(given.out + at + j * step + i) * load(grads.data() + j * size + i);
      shared[j] = sum(products);
    }
  }

  // The weights of 32 keys for 32 queries from `j` on, which are the span's from `first` on, and their scores' gradients.
  void weigh(View view, int64_t first, int64_t key, int64_t j) {
    const auto against = [&](const std::vector<T>& of_keys, const std::vector<T>& of_queries, float* to) {
      const T* panel = of_queries.data() + j * size;
      multiply(Factors<T>{of_keys.data() + key * size, size, size, panel, panel + size * kLanes}, kChunk, to, kColumns,
               tiled);
    };
    against(keys, queries_out, block), against(values, grads_out, grad_block);
    const bool all = view.whole_block(first + j, key);
    for (int lane = 0; lane < kColumns; lane += kLanes) {
      const Vec total = load(logsum + j + lane), mean = load(shared + j + lane);
      for (int m = 0; m < kChunk; m += 2) {
        Vec changes[2];
        for (int odd = 0; odd < 2; ++odd) {
          const int64_t from = (m + odd) * kColumns + lane, to = (key + m + odd) * kQueries + j + lane;
          Vec weight = exponential(load(block + from) * trees.scaling - total);
          if (!all) weight *= view.seen(first + j + lane, key + m + odd);
          changes[odd] = weight * (load(grad_block + from) - mean) * trees.scaling;
          store(weights.data() + to, weight), store(grad_scores.data() + to, changes[odd]);
        }
        T* panel = grad_scores_in.data() + (j + lane) * room;
        store_inputs(panel + (key + m) * kLanes, changes[0], changes[1]);
      }
    }
  }

  // sums of 32 keys += their scores with the queries from `begin` to `width` times what those queries have.
  void add(const std::vector<T>& scores, const std::vector<T>& of_queries, int64_t key, int64_t begin, int64_t width,
           std::vector<float>& sums) {
    for (int64_t column = 0; column < size; column += kColumns) {
      const T* panel = of_queries.data() + column * width + begin * kLanes;
      multiply(Factors<T>{scores.data() + key * kQueries + begin, kQueries, width - begin, panel, panel + width * kLanes},
               kChunk, block, kColumns, tiled);
      for (int m = 0; m < kChunk; ++m)
        for (int i = 0; i < kColumns; i += kLanes) {
          float* to = sums.data() + (key + m) * size + column + i;
          store(to, load(to) + load(block + m * kColumns + i));
        }
    }
  }

  // The gradients of up to 32 queries from `j` on, which see `depth` keys, `step` elements apart.
  void write_queries(int64_t j, int64_t num, int64_t depth, int64_t step, T* grad_q) {
    for (int64_t column = 0; column < size; column += kChunk) {
      const T* panel = grad_scores_in.data() + j * room;
      multiply(Factors<T>{keys_by_column.data() + column * room, room, depth, panel, panel + room * kLanes}, kChunk, block,
               kColumns, tiled);
      alignas(64) float turned[kColumns * kChunk];
      transpose(block, kColumns, kChunk, kColumns, turned, kChunk);
      for (int64_t m = 0; m < num; ++m)
        for (int i = 0; i < kChunk; i += kLanes) store(grad_q + m * step + column + i, load(turned + m * kChunk + i));
    }
  }

  void write_keys(const HeadOfTree<T>& of, Span span, int64_t own, float* parts) const {
    const int64_t at = (of.head * trees.tokens + span.start) * size;
    const auto copy = [&](const std::vector<float>& sums, float* to) {
      std::memcpy(to + at, sums.data() + own * size, span.length * size * sizeof(float));
    };
    copy(grad_keys, parts), copy(grad_values, parts + trees.heads * trees.tokens * size);
  }
};

// The gradients of the above; those for keys and values by query head, (2, heads, tokens, size), in `parts` first.
template <class T>
void attend_trees_backward(const Trees& trees, const Attended<T>& given, T* grad_q, T* grad_k, T* grad_v, float* parts) {
  const bool tiled = by_tiles(given.q, kChunk);
  const Tiles tiles(tiled);
  HeadBackward<T> backward{trees, given, tiled};
#pragma omp for schedule(dynamic, 1)
  for (int64_t task = 0; task < trees.count * trees.heads; ++task) {
    const HeadOfTree<T> of{trees, task / trees.heads, task % trees.heads};
    backward.begin(of);
    of.for_spans([&](Span span, View view) {
      backward.place_keys(of, span, view.own);
      for (int64_t first = 0; first < span.length; first += kQueries) {
        const int64_t num = std::min(kQueries, span.length - first), width = whole(num);
        backward.place_queries(of, span.start + first, num);
        for (int64_t key = 0; key < view.own + first + width; key += kChunk) {
          // Of its own keys, queries before a chunk see none of it.
          const int64_t begin = key < view.own ? 0 : std::max<int64_t>(0, key - view.own - first);
          for (int64_t j = begin; j < width; j += kColumns) backward.weigh(view, first, key, j);
          backward.add(backward.weights, backward.grads_in, key, begin, width, backward.grad_values);
          backward.add(backward.grad_scores, backward.queries_in, key, begin, width, backward.grad_keys);
        }
        for (int64_t j = 0; j < width; j += kColumns)
          backward.write_queries(j, std::min<int64_t>(kColumns, num - j), view.own + first + j + kColumns,
                                 of.query_step(), grad_q + of.query_at(span.start + first + j));
      }
      if (view.own) backward.write_keys(of, span, view.own, parts);
    });
    backward.write_keys(of, of.prompt, 0, parts);  // its branches have added to it
  }

  const int64_t size = trees.size, group = trees.heads / trees.kv_heads;
#pragma omp for schedule(static)
  for (int64_t token = 0; token < trees.tokens; ++token) {
    for (int64_t kv_head = 0; kv_head < trees.kv_heads; ++kv_head) {
      for (int64_t i = 0; i < size; i += kLanes) {
        Vec of_keys{}, of_values{};
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
          const float* from = parts + (head * trees.tokens + token) * size + i;
          of_keys += load(from), of_values += load(from + trees.heads * trees.tokens * size);
        }
        store(grad_k + (token * trees.kv_heads + kv_head) * size + i, of_keys);
        store(grad_v + (token * trees.kv_heads + kv_head) * size + i, of_values);
      }
    }
  }
}
