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
  float* factors;    // [3][kTile]
  uint8_t* unpacked; // records of a tile
  float* tile;       // [kMaxUnit][partial_floats]
  float* state;      // [queries of a block][partial_floats]
  uint8_t* packed;   // queries of a block
  float* scale;      // a query
  int32_t* sum;      // a query
};

static inline Scratch cut_scratch(uint8_t* p, int32_t dim, int32_t group) {
  const ScratchPlan s = scratch_plan(dim, group);
  const auto floats = [p](int64_t at) { return reinterpret_cast<float*>(p + at); };
  return {floats(s.scores), p + s.bytes, floats(s.factors), p + s.unpacked,
          floats(s.tile),   floats(s.state), p + s.packed,      floats(s.scale),
          reinterpret_cast<int32_t*>(p + s.sum)};
}

// Rows [begin, end) of the task, their queries in row order.
struct Block {
  int32_t begin, end, queries, units;
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

// Addresses of the tile's records that the span touches.
static inline void find_records(const Task& t, const RecordShape& shape, int32_t tile, Span span,
                                const uint8_t** records) {
  const KvLayout& kv = *t.a->kv;
  const uint8_t* head = t.a->pages + t.a->kv_head * kv.head_bytes;
  const int32_t in_page = kv.page_size / kRecord;
  for (int32_t i = span.begin / kRecord; i * kRecord < span.end; ++i) {
    const int32_t record = tile * kRecords + i;
    records[i] = head + int64_t{t.a->page_table[record / in_page]} * kv.page_bytes + record % in_page * shape.bytes;
  }
}

// Nothing of the first tile is on its way yet: all its keys are sent for at once, its values while keys are worked on.
static inline void fetch_first(const uint8_t* const* records, Span span, const RecordShape& shape, Ahead& ahead) {
  for (int32_t i = span.begin / kRecord; i * kRecord < span.end; ++i) ahead.add(records[i], shape.values);
  ahead.rest();
  for (int32_t i = span.begin / kRecord; i * kRecord < span.end; ++i)
    ahead.add(records[i] + shape.values, shape.bytes - shape.values);
}

template <class Kind, int R>
void compute_unit(Unit& u, const Span* spans, float* const* records) {
  Kind::template scores<R>(u);
  Step steps[R];
  float* values[R];
  Kind::template weigh<R>(u, spans, records, steps);
  for (int r = 0; r < R; ++r) values[r] = records[r] + 2;
  Kind::template values<R>(u, steps, values);
  for (int r = 0; r < R; ++r) Kind::close(values[r], u.shape.dim);
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

template <class Kind>
void run_unit(const Task& t, const Block& b, int32_t unit, int32_t tile, const Span* rows, Unit& u, const Scratch& s) {
  const int32_t group = t.a->group, dim = t.a->kv->dim, begin = b.unit_begin(unit);
  const int32_t size = b.unit_begin(unit + 1) - begin;
  const int64_t stride = partial_floats(dim), tiles = t.tile_end - t.tile_begin;
  Span spans[kMaxUnit], all = {0, 0};
  float* records[kMaxUnit];
  for (int32_t i = 0; i < size; ++i) {
    const int32_t query = begin + i, row = query / group;
    spans[i] = rows[row];
    all = join(all, spans[i]);
    const int64_t place = (int64_t{b.begin} * group + query) * tiles + tile - t.tile_begin;
    records[i] = t.partials ? t.partials + place * stride : s.tile + i * stride;
  }
  if (all.begin >= all.end) {
    for (int32_t i = 0; i < size; ++i) clear_record(records[i], dim);
  } else {
    u.tokens = all;
    u.first = all.begin / kRecord;
    u.last = static_cast<int32_t>(round_up(all.end, kRecord) / kRecord);
    u.packed = s.packed + int64_t{begin} * dim * Kind::kQueryBytes;
    u.scale = s.scale + begin;
    u.sum = s.sum + begin;
    unit_fns<Kind, kMaxUnit>(size).compute(u, spans, records);
    for (int32_t i = 0; i < size; ++i)
      if (spans[i].begin >= spans[i].end) clear_record(records[i], dim);
  }
  if (t.partials) return;
  for (int32_t i = 0; i < size; ++i) merge_record(s.state + (begin + i) * stride, records[i], dim);
}

template <class Kind>
void pack_block(const Task& t, const Block& b, const Scratch& s) {
  const int32_t group = t.a->group, dim = t.a->kv->dim;
  for (int32_t unit = 0; unit < b.units; ++unit) {
    const int32_t begin = b.unit_begin(unit), size = b.unit_begin(unit + 1) - begin;
    const uint8_t* queries[kMaxUnit];
    for (int32_t i = 0; i < size; ++i) {
      const int32_t row = b.begin + (begin + i) / group, head = (begin + i) % group;
      queries[i] = t.q + row * t.q_row_stride + head * t.a->kv->q_bytes;
    }
    unit_fns<Kind, kMaxUnit>(size).pack(queries, dim, s.packed + int64_t{begin} * dim * Kind::kQueryBytes,
                                        s.scale + begin, s.sum + begin);
  }
}

template <class Kind>
void run_block(const Task& t, const Block& b, const Scratch& s) {
  const int32_t group = t.a->group, dim = t.a->kv->dim;
  const RecordShape shape = record_shape(t.a->kv->kind, dim);
  pack_block<Kind>(t, b, s);
  if (!t.partials)
    for (int32_t i = 0; i < b.queries; ++i) clear_record(s.state + i * partial_floats(dim), dim);
  Ahead ahead;
  const uint8_t* found[2][kRecords];
  const uint8_t* opened[kRecords];
  const TileScratch ready = {opened, s.factors, s.factors + kTile, s.factors + 2 * kTile, s.unpacked};
  Unit u;
  u.records = opened;
  u.shape = Kind::opened_shape(dim);
  u.softcap = t.a->softcap;
  u.key_factors = ready.key_factors;
  u.value_factors = ready.value_factors;
  u.value_minima = ready.value_minima;
  u.scores = s.scores;
  u.bytes = s.bytes;
  u.ahead = &ahead;
  Span rows[kBlockQueries];
  Span all = block_span(t, b, t.tile_begin);
  find_records(t, shape, t.tile_begin, all, found[0]);
  for (int32_t tile = t.tile_begin; tile < t.tile_end; ++tile) {
    const uint8_t** records = found[(tile - t.tile_begin) % 2];
    const uint8_t** coming = found[(tile - t.tile_begin + 1) % 2];
    const Span here = all;
    all = tile + 1 < t.tile_end ? block_span(t, b, tile + 1) : Span{0, 0};
    find_records(t, shape, tile + 1, all, coming);
    if (tile == t.tile_begin) fetch_first(records, here, shape, ahead);
    for (int32_t i = all.begin / kRecord; i * kRecord < all.end; ++i) ahead.add(coming[i], shape.bytes);
    if (here.begin >= here.end && !t.partials) continue;
    for (int32_t r = b.begin; r < b.end; ++r) rows[r - b.begin] = row_span(t, r, tile);
    for (int32_t i = here.begin / kRecord; i * kRecord < here.end; ++i)
      Kind::open_record(shape, records[i], i, ready);
    for (int32_t unit = 0; unit < b.units; ++unit) run_unit<Kind>(t, b, unit, tile, rows, u, s);
    ahead.rest();
  }
  if (t.partials) return;
  for (int32_t i = 0; i < b.queries; ++i)
    normalise(s.state + i * partial_floats(dim), dim,
              t.out + (b.begin + i / group) * t.out_row_stride + int64_t{i % group} * dim);
}

template <class Kind>
void run_task(const Task& t, int32_t rows, uint8_t* scratch) {
  const Scratch s = cut_scratch(scratch, t.a->kv->dim, t.a->group);
  const int32_t size = block_rows(t.a->group);
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

void merge(const float* partials, int32_t tiles, int32_t dim, float* out) {
  alignas(64) float state[2 + kMaxDim + 16];
  clear_record(state, dim);
  for (int32_t i = 0; i < tiles; ++i) merge_record(state, partials + i * partial_floats(dim), dim);
  normalise(state, dim, out);
}

void fill_attention(Kernels* k) {
  k->kv_write = kv_write;
  k->prepare_q = prepare_q;
  k->attend = attend;
  k->merge = merge;
}

}  // namespace
}  // namespace lg
