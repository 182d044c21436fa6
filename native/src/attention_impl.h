// Attention over pages, written once over sixteen lanes: the walk over rows, tiles and queries.
// Each level's attention_*.cpp includes its lanes_*.h and then this file.
//
// Knows: which tokens a row sees, what is computed together, where results go. Does not know: instructions; the bytes
// of a record (attention_bytes.h, attention_bf16.h); softmax (attention_softmax.h).
//
// Rows are taken in blocks of about kBlockQueries queries, so that a tile's keys and values are read from memory once
// a block and from the caches by all its queries. A query is one (row, head); up to kMaxUnit of them share registers.
// Nothing in the arithmetic of one (query, tile) depends on the others.
#pragma once
#include "attention_bf16.h"
#include "attention_bytes.h"

namespace lg {
namespace {

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

struct Task {
  const AttendArgs* a;
  const uint8_t* q;
  int64_t q_row_stride;
  const int32_t* positions;
  int32_t tile_begin, tile_end;
  float* partials;
  float* out;
  int64_t out_row_stride;
};

// The caller's scratch, cut up.
struct Scratch {
  float* scores;     // [kMaxUnit][kTile]
  uint8_t* bytes;    // [kMaxUnit][kTile]
  float* factors;    // [4][kTile]
  uint8_t* unpacked; // records of a tile
  float* tile;       // [queries of a block][partial_floats]
  float* state;      // [queries of a block][partial_floats]
  uint8_t* packed;   // queries of a block
  float* running;    // [queries of a block][kRunning]
  float* maxima;     // [units of a block][16]
  float* scale;      // a query
  int32_t* sum;      // a query
  Span* spans;       // a query of a block
  float** records;   // a query of a block
};

static inline Scratch cut_scratch(uint8_t* p, int32_t dim, int32_t group) {
  const ScratchPlan s = scratch_plan(dim, group);
  const auto floats = [p](int64_t at) { return reinterpret_cast<float*>(p + at); };
  return {floats(s.scores), p + s.bytes,   floats(s.factors), p + s.unpacked,  floats(s.tile),
          floats(s.state),  p + s.packed, floats(s.running), floats(s.maxima), floats(s.scale),
          reinterpret_cast<int32_t*>(p + s.sum),
          reinterpret_cast<Span*>(p + s.spans), reinterpret_cast<float**>(p + s.records)};
}

// Rows [begin, end) of the task. Its queries: head after head, those of a head in row order.
struct Block {
  int32_t begin, end, queries, units;  // queries and units of one head
  int32_t unit_begin(int32_t unit) const { return queries * unit / units; }
};

static inline Span row_span(const Task& t, int32_t row, int32_t tile) {
  const int64_t at = int64_t{tile} * kTile, position = t.positions[row];
  const int64_t first = t.a->window > 0 ? most(0, position - t.a->window + 1) : 0;
  const int64_t begin = most(0, first - at), end = least(kTile, position + 1 - at);
  if (begin >= end) return {0, 0};
  return {static_cast<int32_t>(begin), static_cast<int32_t>(end)};
}

static inline Span join(Span a, Span b) {
  if (a.begin >= a.end) return b;
  if (b.begin >= b.end) return a;
  return {static_cast<int32_t>(least(a.begin, b.begin)), static_cast<int32_t>(most(a.end, b.end))};
}

static inline Span block_span(const Task& t, const Block& b, int32_t tile) {
  Span all = {0, 0};
  for (int32_t r = b.begin; r < b.end; ++r) all = join(all, row_span(t, r, tile));
  return all;
}

// Addresses of one head's records of a tile that the span touches.
static inline void find_records(const Task& t, const RecordShape& shape, int32_t tile, int32_t head, Span span,
                                const uint8_t** records) {
  const KvLayout& kv = *t.a->kv;
  for (int32_t i = span.begin / kRecord; i * kRecord < span.end; ++i) {
    const int32_t at = tile * kTile + i * kRecord, page = t.a->page_table[at >> kv.page_shift];
    const int32_t record = (at & (kv.page_size - 1)) / kRecord;
    records[i] = t.a->pages + kv.place(page, t.a->kv_head + head) + record * shape.bytes;
  }
}

// Whether most pages of the task lie elsewhere than behind the one before.
static inline bool is_scattered(const Task& t, Span first) {
  const int32_t size = t.a->kv->page_size, begin = (t.tile_begin * kTile + first.begin) / size;
  const int32_t end = static_cast<int32_t>(least(begin + 64, (t.tile_begin * kTile + first.end - 1) / size));
  int32_t jumps = 0;
  for (int32_t i = begin; i < end; ++i) jumps += t.a->page_table[i + 1] != t.a->page_table[i] + 1;
  return 4 * jumps > end - begin;
}

template <class Kind, int R>
void compute_unit(Unit& u, const Span* spans, float* const* out) {
  Steps steps;
  if (!Kind::template weigh_whole<R>(u, spans, steps)) {
    Kind::template scores<R>(u);
    Kind::template weigh<R>(u, spans, steps);
  }
  Kind::template values<R>(u, steps, out);
}

template <class Kind>
struct UnitFns {
  void (*pack)(const uint8_t* const*, int32_t, uint8_t*, float*, int32_t*);
  void (*compute)(Unit&, const Span*, float* const*);
};

template <class Kind, int R>
static inline UnitFns<Kind> unit_fns(int32_t size) {
  if constexpr (R > 1) {
    if (size < R) return unit_fns<Kind, R - 1>(size);
  }
  return {Kind::template pack<R>, compute_unit<Kind, R>};
}

// One tile of one head: what each query of the block attends to, and where its result grows.
struct TileWork {
  int32_t tile, head;
  Span* spans;
  float** records;
};

template <class Kind>
void run_unit(const Task& t, const Block& b, int32_t unit, int32_t first, const TileWork& w, Unit& u,
              const Scratch& s) {
  const int32_t dim = t.a->kv->dim, begin = b.unit_begin(unit);
  const int32_t size = b.unit_begin(unit + 1) - begin, at = w.head * b.queries + begin;
  const Span stretch = {first * kRecord, (first + kStretch) * kRecord};
  Span spans[kMaxUnit], all = {0, 0};
  float* out[kMaxUnit];
  for (int32_t i = 0; i < size; ++i) {
    const Span row = w.spans[begin + i];
    spans[i] = {static_cast<int32_t>(most(row.begin, stretch.begin)), static_cast<int32_t>(least(row.end, stretch.end))};
    all = join(all, spans[i]);
    out[i] = w.records[begin + i];
  }
  if (all.begin >= all.end) return;
  u.tokens = all;
  u.first = all.begin / kRecord;
  u.last = static_cast<int32_t>(round_up(all.end, kRecord) / kRecord);
  u.packed = s.packed + int64_t{at} * dim * Kind::kQueryBytes;
  u.scale = s.scale + at;
  u.sum = s.sum + at;
  u.running = s.running + int64_t{begin} * kRunning;
  u.maxima = s.maxima + 16 * unit;
  unit_fns<Kind, kMaxUnit>(size).compute(u, spans, out);
}

template <class Kind>
void pack_block(const Task& t, const Block& b, const Scratch& s) {
  const int32_t group = t.a->group, dim = t.a->kv->dim;
  for (int32_t unit = 0; unit < b.units * t.a->heads; ++unit) {
    const int32_t head = unit / b.units, begin = b.unit_begin(unit % b.units);
    const int32_t size = b.unit_begin(unit % b.units + 1) - begin, at = head * b.queries + begin;
    const uint8_t* queries[kMaxUnit];
    for (int32_t i = 0; i < size; ++i) {
      const int32_t row = b.begin + (begin + i) / group, j = head * group + (begin + i) % group;
      queries[i] = t.q + row * t.q_row_stride + j * t.a->kv->q_bytes;
    }
    unit_fns<Kind, kMaxUnit>(size).pack(queries, dim, s.packed + int64_t{at} * dim * Kind::kQueryBytes, s.scale + at,
                                        s.sum + at);
  }
}

// Records of the tile's queries, empty.
static inline void start_work(const Task& t, const Block& b, TileWork& w, const Scratch& s) {
  const int32_t group = t.a->group, dim = t.a->kv->dim, tiles = t.tile_end - t.tile_begin;
  const int64_t stride = partial_floats(dim);
  for (int32_t r = b.begin, i = 0; r < b.end; ++r) {
    const Span span = row_span(t, r, w.tile);
    for (int32_t j = 0; j < group; ++j, ++i) {
      const int64_t query = (int64_t{r} * t.a->heads + w.head) * group + j;
      w.spans[i] = span;
      w.records[i] = t.partials ? t.partials + (query * tiles + w.tile - t.tile_begin) * stride : s.tile + i * stride;
      start_tile(w.records[i], s.running + i * kRunning, dim);
    }
  }
  for (int32_t unit = 0; unit < b.units; ++unit) f_store(s.maxima + 16 * unit, f_set(-HUGE_VALF));
}

template <class Kind>
void finish_work(const Task& t, const Block& b, const TileWork& w, const Scratch& s) {
  const int32_t dim = t.a->kv->dim;
  const int64_t end = round_up(dim, 16), stride = partial_floats(dim);
  float* to[kMergeQueries];
  const float* from[kMergeQueries];
  int32_t count = 0;
  for (int32_t unit = 0; unit < b.units; ++unit)
    for (int32_t begin = b.unit_begin(unit), i = begin; i < b.unit_begin(unit + 1); ++i) {
      if (w.spans[i].begin >= w.spans[i].end) continue;
      const float* running = s.running + i * kRunning;
      float* record = w.records[i];
      record[end] = s.maxima[16 * unit + top_lane(i - begin)];
      record[end + 1] = f_sum(f_load(running));
      Kind::finish(record, running, dim);
      if (t.partials) continue;
      to[count] = s.state + (w.head * b.queries + i) * stride;
      from[count++] = record;
      if (count == kMergeQueries) merge_records(to, from, count, dim), count = 0;
    }
  if (count) merge_records(to, from, count, dim);
}

template <class Kind>
void run_block(const Task& t, const Block& b, const Scratch& s) {
  const int32_t group = t.a->group, dim = t.a->kv->dim, heads = t.a->heads;
  const RecordShape shape = record_shape(t.a->kv->kind, dim);
  pack_block<Kind>(t, b, s);
  if (!t.partials)
    for (int32_t i = 0; i < b.queries * heads; ++i) clear_record(s.state + i * partial_floats(dim), dim);
  Ahead ahead;
  const uint8_t* found[2][kRecords];
  const uint8_t* opened[kRecords];
  const TileScratch ready = {opened, s.factors, s.factors + kTile, s.factors + 2 * kTile, s.factors + 3 * kTile, s.unpacked};
  Unit u;
  u.records = opened;
  u.shape = Kind::opened_shape(dim);
  u.softcap = t.a->softcap;
  u.key_factors = ready.key_factors;
  u.value_factors = ready.value_factors;
  u.value_heights = ready.value_heights;
  u.value_centres = ready.value_centres;
  u.scores = s.scores;
  u.bytes = s.bytes;
  u.ahead = &ahead;
  TileWork w = {0, 0, s.spans, s.records};
  const int32_t steps = (t.tile_end - t.tile_begin) * heads;
  Span here = {0, 0}, coming = block_span(t, b, t.tile_begin);
  ahead.start(is_scattered(t, coming));
  for (int32_t step = -1; step < steps; ++step) {
    const uint8_t** records = found[step & 1];
    const uint8_t** next = found[(step + 1) & 1];
    here = coming;
    w.tile = t.tile_begin + step / heads;
    w.head = step % heads;
    if (step + 1 < steps) {
      if ((step + 1) % heads == 0) coming = block_span(t, b, t.tile_begin + (step + 1) / heads);
      find_records(t, shape, t.tile_begin + (step + 1) / heads, (step + 1) % heads, coming, next);
      for (int32_t i = coming.begin / kRecord; i * kRecord < coming.end; ++i) ahead.add(next[i], shape.bytes);
    }
    if (step < 0) {
      ahead.burst();
      continue;
    }
    start_work(t, b, w, s);
    for (int32_t first = here.begin / kRecord / kStretch * kStretch; first * kRecord < here.end; first += kStretch) {
      const int32_t begin = static_cast<int32_t>(most(first, here.begin / kRecord));
      const int32_t end = static_cast<int32_t>(least(first + kStretch, (here.end + kRecord - 1) / kRecord));
      ahead.allow(static_cast<int32_t>((end - begin) * (shape.bytes / 64)));
      for (int32_t i = begin; i < end; ++i) Kind::open_record(shape, records[i], i, ready);
      for (int32_t unit = 0; unit < b.units; ++unit) run_unit<Kind>(t, b, unit, first, w, u, s);
    }
    finish_work<Kind>(t, b, w, s);
  }
  if (t.partials) return;
  for (int32_t i = 0; i < b.queries * heads; ++i) {
    const int32_t row = b.begin + i % b.queries / group, j = i / b.queries * group + i % group;
    normalise(s.state + i * partial_floats(dim), dim, t.out + row * t.out_row_stride + int64_t{j} * dim);
  }
}

template <class Kind>
void run_task(const Task& t, int32_t rows, uint8_t* scratch) {
  const Scratch s = cut_scratch(scratch, t.a->kv->dim, t.a->group);
  const int32_t size = block_rows(t.a->group * t.a->heads);
  for (int32_t begin = 0; begin < rows; begin += size) {
    Block b = {begin, static_cast<int32_t>(least(rows, begin + size)), 0, 0};
    b.queries = (b.end - b.begin) * t.a->group;
    b.units = (b.queries + kMaxUnit - 1) / kMaxUnit;
    run_block<Kind>(t, b, s);
  }
}

void attend(const AttendArgs* a, const uint8_t* q, int64_t q_row_stride, const int32_t* positions, int32_t rows,
            int32_t tile_begin, int32_t tile_end, float* partials, float* out, int64_t out_row_stride,
            uint8_t* scratch) {
  const Task t = {a, q, q_row_stride, positions, tile_begin, tile_end, partials, out, out_row_stride};
  if (a->kv->kind == KV_INT8) run_task<Int8>(t, rows, scratch);
  if (a->kv->kind == KV_INT4) run_task<Int4>(t, rows, scratch);
  if (a->kv->kind == KV_BF16) run_task<Bf16>(t, rows, scratch);
}

void merge(const float* partials, int32_t queries, int32_t tiles, int32_t dim, bool first, float* states) {
  const int64_t record = partial_floats(dim);
  float* to[kMergeQueries];
  const float* from[kMergeQueries];
  for (int32_t begin = 0; begin < queries; begin += kMergeQueries) {
    const int32_t count = static_cast<int32_t>(least(kMergeQueries, queries - begin));
    for (int32_t i = 0; i < count; ++i) {
      to[i] = states + (begin + i) * record;
      if (first) clear_record(to[i], dim);
    }
    for (int32_t tile = 0; tile < tiles; ++tile) {
      for (int32_t i = 0; i < count; ++i) from[i] = partials + (int64_t{begin + i} * tiles + tile) * record;
      merge_records(to, from, count, dim);
    }
  }
}

void conclude(const float* states, int32_t queries, int32_t dim, float* out) {
  for (int32_t i = 0; i < queries; ++i) normalise(states + i * partial_floats(dim), dim, out + int64_t{i} * dim);
}

void fill_attention(Kernels* k) {
  k->kv_write = kv_write;
  k->prepare_q = prepare_q;
  k->attend = attend;
  k->merge = merge;
  k->conclude = conclude;
}

}  // namespace
}  // namespace lg
