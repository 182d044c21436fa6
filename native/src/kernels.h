// The seam between the step program and the kernels: shapes, layouts and one table of functions a CPU level.
//
// Knows: layouts of packed weights, quantised rows and KV pages. Does not know: models, requests, Python.
//
// The numerics contract: an output element's value never depends on how many rows are computed together, on the
// number of threads, or on how a prompt was cut. So every function treats each row alone, in one fixed order:
//   linear     y[n] = sum over groups g = 0, 1, ... of float(int32 dot of group g) * (w_scale * a_scale), by fma in
//              that order (plus the group's min term where the format has one, second), then + bias, then the epilogue.
//              Float formats: two fma chains an output, over even and over odd k, then even + odd.
//   attention  tokens fall into tiles of kTile absolute positions; a tile's (max, sum, output) is computed alone and
//              merged with the ones before it in order, whoever computed it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lg {

constexpr int kGroup = 32;   // values of k that share one activation scale
constexpr int kLanes = 16;   // outputs of one weight block
constexpr int kTile = 256;   // tokens of one attention tile (absolute positions 0-255, 256-511, ...)
constexpr int kAlign = 64;
constexpr int kAttendQueries = 96;  // queries that share a walk over the tiles
constexpr int kRun = 64;     // weights of a vocabulary that have one sum and one maximum

inline int64_t round_up(int64_t x, int64_t m) { return (x + m - 1) / m * m; }

// ---------------------------------------------------------------- rows of quantised activations
// One record a row of K values (K % 32 == 0), its groups one after the other, 64 bytes each: a kernel reaches all that
// it needs of a row and group in one line. A group is 8 quads of 4 values. The two quads with the largest magnitudes
// are fine: their values have 16 bits, so that an outlier does not cost its neighbours their precision; the other six
// have 8. With 8 bits for all, one token in fourteen of a small model is another one.
//   int8   lo[32]      q = hi * 256 + lo = round-to-nearest-even(x / d); hi is 0 outside the fine quads
//   int8   hi[2][4]    of the fine quads
//   uint16 at[2]       64 * the fine quads' numbers
//   float  d           max(largest of the six / 127, largest / 32512)
//   float  s           d * sum(q)                                          for formats with a minimum
//   int32  minus[3]    -sum(q), -sum(q[0..15]), -sum(q[16..31])            for formats with an integer offset
// Magnitudes are compared without their three lowest bits, which hold the quad's number instead. A record has an odd
// number of lines, so that the same group of several rows does not fall into one set of a cache.
inline int64_t qrow_bytes(int64_t K) { return 64 * (K / kGroup | 1); }

// ---------------------------------------------------------------- packed weights
// Blocks of 16 outputs; N is padded to whole blocks with zero weights. Inside a block, groups of 32 k in order.
// The exact bytes of a group belong to the linear kernels (linear_pack.cpp); packing and kernels agree, nobody else looks.
enum WeightKind : int32_t {
  W_F32 = 0,
  W_F16 = 1,
  W_BF16 = 2,
  W_Q8_0 = 3,
  W_Q4_0 = 4,
  W_Q4_1 = 5,
  W_Q5_0 = 6,
  W_Q5_1 = 7,
  W_Q4_K = 8,
  W_Q5_K = 9,
  W_Q6_K = 10,
  W_KINDS = 11,
};

inline bool takes_quantized_rows(int32_t kind) { return kind >= W_Q8_0; }

struct PackedLinear {
  int32_t kind;
  int32_t rows;          // N: outputs, unpadded
  int32_t cols;          // K
  int32_t gated;         // 1: blocks alternate gate, up, gate, up, ...; rows counts both
  const uint8_t* data;   // 64-byte aligned
  const float* bias;     // padded to whole blocks, in block order; or null
};

enum Epilogue : int32_t {
  EP_STORE = 0,        // out = y
  EP_ADD = 1,          // out += y   (the residual)
  EP_GATED_SILU = 2,   // out = silu(gate) * up; block pair p writes out block p
  EP_GATED_GELU_TANH = 3,
  EP_GATED_GELU = 4,
  EP_SILU = 5,         // out = act(y), plain MLPs
  EP_GELU_TANH = 6,
  EP_GELU = 7,
};

// ---------------------------------------------------------------- KV pages
enum KvKind : int32_t { KV_BF16 = 1, KV_INT8 = 2, KV_INT4 = 3 };

// Pages are kept in extents of a tile's worth of pages. An extent of a layer holds, head after head, that head's part
// of its pages: head_bytes each with the keys, the values and the scales of page_size tokens. So a sequence whose pages
// follow each other is read in the order in which it lies, which memory serves best. page_size is a multiple of 16 and
// divides kTile.
struct KvLayout {
  int32_t kind, heads, dim, page_size;
  int32_t page_shift;    // page_size as a power of two
  int64_t head_bytes, page_bytes;
  int64_t extent_bytes;  // from a layer's extent to its next one
  int64_t q_bytes;       // one prepared query (one row, one head), 64-byte multiple

  int32_t extent_pages() const { return kTile >> page_shift; }
  int64_t place(int32_t page, int32_t head) const {
    const int32_t many = extent_pages();
    return (int64_t{page} << page_shift) / kTile * extent_bytes + (int64_t{head} * many + (page & (many - 1))) * head_bytes;
  }
};

// One sequence's view of one layer for attention. Positions are absolute; row r attends to tokens
// max(0, pos[r] - window + 1) .. pos[r] (window 0: from 0).
struct AttendArgs {
  const KvLayout* kv;
  const uint8_t* pages;        // the layer's store
  const int32_t* page_table;   // this sequence's pages
  int32_t kv_head;
  int32_t group;               // query heads a kv head
  int32_t window;              // 0: none
  float softcap;               // 0: none
  int32_t heads = 1;           // kv heads from kv_head on, their query heads one after the other
};

// A tile's result for one (row, query head): dim floats of sum(p * v), not normalised, padded to whole lanes; then the
// maximum and the sum of p.
inline int64_t partial_floats(int dim) { return round_up(dim, 16) + 16; }

// ---------------------------------------------------------------- the table
struct Kernels {
  const char* name;  // "portable", "avx2", "avx512", "amx"

  // rows
  void (*quantize_row)(const float* x, int64_t K, uint8_t* out);
  void (*rms_norm)(const float* x, const float* w, int64_t D, float eps, float* y);
  void (*layer_norm)(const float* x, const float* w, const float* b, int64_t D, float eps, float* y);
  // y = first 2*half dims rotated by (cos, sin)[half], NeoX halves; in place
  void (*rope)(float* head, int64_t half, const float* cos, const float* sin);
  void (*add)(float* x, const float* y, int64_t n);
  void (*activate)(float* x, int64_t n, int32_t epilogue);           // EP_SILU, EP_GELU_TANH, EP_GELU
  void (*softcap)(float* x, int64_t n, float cap);
  int64_t (*argmax)(const float* x, int64_t n, float* best);         // lowest index among equals; NaN: returns -1
  // weights = e^((logits - top) * inverse_temperature); sums and maxima of each kRun of them, the last one's as short as
  // it is. No logit is a NaN.
  void (*weigh)(const float* logits, int64_t n, float top, float inverse_temperature, float* weights, float* run_sums,
                float* run_tops);

  // linear: output blocks [begin, end) (pairs when gated) of M rows.
  //   act: M records act_stride bytes apart (quantised rows, or float rows for the float kinds)
  //   out: M rows of out_stride floats; for the last block only unpadded columns are written
  //   scratch: at least linear_scratch_bytes(K) bytes private to the calling thread, 64-byte aligned
  void (*linear)(const PackedLinear* w, const uint8_t* act, int64_t act_stride, int32_t M, int32_t begin, int32_t end,
                 float* out, int64_t out_stride, int32_t epilogue, uint8_t* scratch);
  // one row of a table, to float: table packed by pack_table (rows as they lie in the file)
  void (*table_row)(int32_t kind, const uint8_t* row, int64_t cols, float scale, float* out);

  // attention
  // One token of one head; slot: page * page_size + place in the page.
  void (*kv_write)(const KvLayout* kv, uint8_t* pages, int32_t slot, int32_t head, const float* k, const float* v);
  void (*prepare_q)(const KvLayout* kv, const float* q, float scale, uint8_t* out);
  // Tiles [tile_begin, tile_end) for `rows` consecutive rows of one sequence, `heads` kv heads, all their query heads.
  // More than one kv head only while they have no more than kAttendQueries query heads.
  //   q: prepared queries; (row, j-th query head) at q + row * q_row_stride + j * kv->q_bytes
  //   positions: absolute position a row
  //   partials: if not null, (row, j, tile - tile_begin) records of partial_floats, that order; tiles a row does not
  //             touch get max = -inf, sum = 0
  //   out: if partials is null, all tiles are [0, tile_end) and normalised results go to
  //        out + row * out_row_stride + j * dim
  void (*attend)(const AttendArgs* a, const uint8_t* q, int64_t q_row_stride, const int32_t* positions, int32_t rows,
                 int32_t tile_begin, int32_t tile_end, float* partials, float* out, int64_t out_row_stride,
                 uint8_t* scratch);
  // Adds `tiles` partial records of each of `queries` queries, in order, to their states, which are such records too:
  // exactly the arithmetic `attend` uses between tiles. first: there is nothing in the states yet.
  void (*merge)(const float* partials, int32_t queries, int32_t tiles, int32_t dim, bool first, float* states);
  // What states come to: dim floats a query, one after the other.
  void (*conclude)(const float* states, int32_t queries, int32_t dim, float* out);
};

int64_t linear_scratch_bytes(int64_t max_cols);
int64_t attend_scratch_bytes(int32_t dim, int32_t group);
KvLayout kv_layout(int32_t kind, int32_t heads, int32_t dim, int32_t page_size);

// Bytes of a packed linear of N rows (unpadded) and K columns.
int64_t packed_bytes(int32_t kind, int64_t rows, int64_t cols);
// Packs file rows [0, n) of `src` as output rows [row, row + n) of `dst` (row may be anything; when gated_slot is 0 or
// 1, output block b of this source becomes block 2 * b + gated_slot). Lossless. dst must start zeroed.
void pack_rows(int32_t kind, const uint8_t* src, int64_t n, int64_t cols, uint8_t* dst, int64_t row, int32_t gated_slot);

// Filled by each level's files (null when not compiled in).
void fill_linear_portable(Kernels*);
void fill_linear_avx2(Kernels*);
void fill_linear_avx512(Kernels*);
void fill_linear_amx(Kernels*);  // its other kernels are avx512's
void fill_attention_portable(Kernels*);
void fill_attention_avx2(Kernels*);
void fill_attention_avx512(Kernels*);
void fill_rows_portable(Kernels*);
void fill_rows_avx2(Kernels*);
void fill_rows_avx512(Kernels*);

}  // namespace lg
