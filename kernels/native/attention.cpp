#include "attention.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

namespace qwell {
namespace {

// Rows of a tile, unless a single query has more heads of one key/value head.
constexpr std::int64_t kTileRows = 64;

// Tasks that a thread has on average, if there are so many: what it takes last is then short.
constexpr std::int64_t kTasksPerThread = 4;

// Floats, aligned to 64 bytes; it only grows, so that steps of the usual size allocate nothing.
class Space {
 public:
  Space() = default;
  ~Space() { release(); }
  Space(const Space&) = delete;
  Space& operator=(const Space&) = delete;

  float* take(std::int64_t floats) {
    if (floats > floats_) {
      release();
      data_ = static_cast<float*>(
          ::operator new(static_cast<std::size_t>(floats) * sizeof(float), kAlignment));
      floats_ = floats;
    }
    return data_;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};

  void release() { ::operator delete(data_, kAlignment); }

  float* data_ = nullptr;
  std::int64_t floats_ = 0;
};

// A tile with the splits of the keys that its queries see, at least one.
struct Work {
  AttentionTile tile;
  std::int64_t first_split;
  std::int64_t splits;
  std::int64_t partials = 0;  // where the results of its splits are
  std::int64_t pending = 0;   // splits that are not done
};

struct SplitTask {
  Work* work;
  std::int64_t index;  // among the splits of the work
};

float* scratch(std::int64_t floats) {
  static thread_local Space space;
  return space.take(floats);
}

std::int64_t group(const AttentionCall& call) { return call.num_heads / call.num_kv_heads; }

std::int64_t whole_lines(std::int64_t floats) { return (floats + 15) / 16 * 16; }

// Gives body(work) the tiles of a sequence, with all key/value heads.
template <class Body>
void each_tile(const AttentionCall& call, std::int64_t s, const Body& body) {
  const std::int64_t start = call.cu_seqlens_q[s];
  const std::int64_t queries = call.cu_seqlens_q[s + 1] - start;
  const std::int64_t position = call.seq_lens[s] - queries;
  const std::int64_t tile_queries = std::max<std::int64_t>(kTileRows / group(call), 1);
  // The last tiles have the most keys: what is taken last should be short.
  for (std::int64_t t = (queries + tile_queries - 1) / tile_queries - 1; t >= 0; --t) {
    const std::int64_t first = t * tile_queries;
    const AttentionTile tile{.row = start + first,
                             .queries = std::min(tile_queries, queries - first),
                             .position = position + first,
                             .kv_head = 0,
                             .kv_heads = call.num_kv_heads,
                             .blocks = call.block_table + s * call.table_stride};
    const std::int64_t oldest =
        call.window > 0 ? std::max<std::int64_t>(tile.position - call.window + 1, 0) : 0;
    // Where nothing is visible, a split without keys gives the zeros.
    const std::int64_t newest = std::max(tile.position + tile.queries - 1, oldest);
    const std::int64_t first_split = oldest / kSplitKeys;
    body({.tile = tile,
          .first_split = first_split,
          .splits = newest / kSplitKeys - first_split + 1});
  }
}

// Heads side by side are one stretch of memory in a block, and a thread reads the faster the longer
// its stretches are: a tile takes as many as leave tasks enough, and rows few.
void plan(const AttentionCall& call, std::int64_t threads, std::vector<Work>& works) {
  const auto each = [&](const auto& body) {
    for (std::int64_t s = 0; s < call.max_seqs && call.cu_seqlens_q[s] < call.rows; ++s) {
      each_tile(call, s, body);
    }
  };
  std::int64_t tasks = 0;
  each([&](const Work& work) { tasks += work.splits; });
  const std::int64_t heads = tasks * call.num_kv_heads / (kTasksPerThread * threads);

  works.clear();
  each([&](Work work) {
    const std::int64_t rows = work.tile.queries * group(call);
    const std::int64_t most =
        std::clamp<std::int64_t>(std::min(heads, kTileRows / rows), 1, call.num_kv_heads);
    const std::int64_t groups = (call.num_kv_heads + most - 1) / most;
    for (std::int64_t i = 0; i < groups; ++i) {
      work.tile.kv_head = i * call.num_kv_heads / groups;
      work.tile.kv_heads = (i + 1) * call.num_kv_heads / groups - work.tile.kv_head;
      works.push_back(work);
    }
  });
}

}  // namespace

std::int64_t attention_partial_floats(const AttentionCall& call, const AttentionTile& tile) {
  const std::int64_t rows = tile.queries * group(call) * tile.kv_heads;
  return whole_lines(rows * (attention_width(call.head_dim) + 2));
}

std::int64_t attention_scratch_floats(const AttentionCall& call, const AttentionTile& tile) {
  // As Walk in attention_kernel.cpp lays it out; numbers are two to a float.
  const std::int64_t rows = tile.queries * group(call);
  const std::int64_t width = attention_width(call.head_dim);
  const std::int64_t of_step = rows * (64 + 64 / 2 + 2) + 2 * 64 * width;
  const std::int64_t of_head = rows * (16 + width + width / 2 + 2);
  return whole_lines(of_step + tile.kv_heads * of_head);
}

void attention(Isa isa, Pool& pool, const AttentionCall& call) {
  const auto split = QWELL_KERNEL(isa, attention_split);
  const auto merge = QWELL_KERNEL(isa, attention_merge);
  const auto finish = QWELL_KERNEL(isa, attention_finish);

  static thread_local std::vector<Work> planned;
  std::vector<Work>& works = planned;
  plan(call, pool.threads(), works);

  std::int64_t splits = 0;
  std::int64_t most = 0;
  for (const Work& work : works) {
    splits += work.splits;
    most = std::max(most, work.splits);
  }
  if (most * kTasksPerThread * pool.threads() <= splits) {
    pool.run(static_cast<std::int64_t>(works.size()), [&](std::int64_t i) {
      const Work& work = works[static_cast<std::size_t>(i)];
      const std::int64_t floats = attention_partial_floats(call, work.tile);
      float* into = scratch(attention_scratch_floats(call, work.tile) + 2 * floats);
      float* later = into + floats;
      float* space = later + floats;
      split(call, work.tile, work.first_split, space, into);
      for (std::int64_t done = 1; done < work.splits; ++done) {
        split(call, work.tile, work.first_split + done, space, later);
        merge(call, work.tile, into, later);
      }
      finish(call, work.tile, into);
    });
    return;
  }

  // Few tiles, or a long one: the splits of each are shared out, and who ends the last one merges
  // them.
  static thread_local std::vector<SplitTask> planned_tasks;
  static thread_local Space partials;
  std::vector<SplitTask>& tasks = planned_tasks;
  tasks.clear();
  std::int64_t size = 0;
  for (Work& work : works) {
    work.partials = size;
    work.pending = work.splits;
    size += work.splits * attention_partial_floats(call, work.tile);
    for (std::int64_t i = 0; i < work.splits; ++i) tasks.push_back({&work, i});
  }
  float* results = partials.take(size);
  pool.run(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t i) {
    const SplitTask& task = tasks[static_cast<std::size_t>(i)];
    Work& work = *task.work;
    const std::int64_t floats = attention_partial_floats(call, work.tile);
    float* into = results + work.partials;
    split(call, work.tile, work.first_split + task.index,
          scratch(attention_scratch_floats(call, work.tile)), into + task.index * floats);
    if (std::atomic_ref(work.pending).fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    for (std::int64_t done = 1; done < work.splits; ++done) {
      merge(call, work.tile, into, into + done * floats);
    }
    finish(call, work.tile, into);
  });
}

}  // namespace qwell
