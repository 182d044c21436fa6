// The public C interface of Legato's native library.
//
// Knows: plain data only; every struct is fixed-width numbers and pointers, every handle an opaque pointer or an index.
// Does not know: Python, models' families, files.
//
// Threads: a context and all that was made from it belong to one caller at a time; a second caller gets LG_BUSY.
// Errors: a function that returns a status returns LG_OK (0) or one of lg_status; lg_error() then holds one line about
// it, for the calling thread. Nothing throws across this border.
#pragma once
#include <stdint.h>

#if defined(__GNUC__)
#define LG_API __attribute__((visibility("default")))
#else
#define LG_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define LG_ABI_VERSION 4

typedef enum lg_status {
  LG_OK = 0,
  LG_BAD_ARGUMENT = 1,   // a value that no caller should send
  LG_UNSUPPORTED = 2,    // sound, but this build or machine cannot do it
  LG_OUT_OF_MEMORY = 3,
  LG_BAD_BATCH = 4,      // a step's arrays contradict each other or point outside
  LG_BUSY = 5,           // another thread is inside this context
  LG_FORKED = 6,         // the context was made before a fork; its threads are in the parent
} lg_status;

LG_API int32_t lg_abi_version(void);
LG_API const char* lg_error(void);

// ---------------------------------------------------------------- the machine
// Instruction-set levels, lowest first. An obstacle says why a level cannot be used here; "" when it can.
LG_API int32_t lg_isa_count(void);
LG_API const char* lg_isa_name(int32_t level);
LG_API const char* lg_isa_obstacle(int32_t level);

typedef struct lg_topology {
  int32_t allowed_cpus;     // hardware threads this process may run on
  int32_t allowed_cores;    // physical cores among them
  int32_t numa_nodes;       // nodes that own some of them
  int32_t default_threads;
  double cpu_quota;         // cores' worth of time by control groups; 0: no limit
  int64_t l2_bytes;         // a core's second-level cache
} lg_topology;

// `root` is put before /sys and /proc ("" for the real ones), so that a made-up machine can be read.
LG_API int32_t lg_read_topology(const char* root, lg_topology* out);

// ---------------------------------------------------------------- a context: threads, an instruction set, packed weights
typedef struct lg_context lg_context;

// isa: a level's name, or "auto" for the highest usable. threads: 0 for the topology's default.
LG_API int32_t lg_context_create(const char* isa, int32_t threads, lg_context** out);
LG_API void lg_context_free(lg_context* context);
LG_API const char* lg_context_isa(const lg_context* context);
LG_API int32_t lg_context_threads(const lg_context* context);
LG_API const char* lg_context_placement(const lg_context* context);  // what was done about NUMA nodes, for a person
LG_API int64_t lg_context_weight_bytes(const lg_context* context);
// Reads `bytes` of fresh memory `passes` times with `threads` of the context's threads; writes each pass's nanoseconds.
LG_API int32_t lg_read_probe(lg_context* context, int64_t bytes, int32_t threads, int32_t passes, int64_t* pass_ns);

// One tensor of a linear layer as it lies in its file.
typedef struct lg_part {
  const uint8_t* data;
  int64_t data_bytes;
  int64_t rows;
  int32_t slot;             // -1: rows follow the part before; 0: gate, 1: up (then every part has a slot)
  int32_t reserved;
} lg_part;

// All pack functions write a handle. `kind` numbers are those of kernels.h; lg_kind_block(kind) values share
// lg_kind_block_bytes(kind) bytes (0 for an unknown kind).
LG_API int64_t lg_kind_block(int32_t kind);
LG_API int64_t lg_kind_block_bytes(int32_t kind);
LG_API int32_t lg_pack_vector(lg_context* context, const float* values, int64_t count, int32_t* handle);
// bias: one float an output row, in the order of the parts (gate rows, then up rows), or null.
LG_API int32_t lg_pack_linear(lg_context* context, int32_t kind, int64_t cols, const lg_part* parts, int32_t num_parts,
                              const float* bias, int32_t* handle);
// The table is read in place: `data` must outlive the context.
LG_API int32_t lg_pack_table(lg_context* context, int32_t kind, const uint8_t* data, int64_t data_bytes, int64_t rows,
                             int64_t cols, int32_t* handle);

// ---------------------------------------------------------------- a program: a recorded step, its buffers, its KV pages
enum lg_op_kind {
  LG_EMBED = 0,       // out = table[input_ids] * value (+ positions[positions_T]); the first operation
  LG_LINEAR = 1,      // out = epilogue(norm?(in) @ w)
  LG_ATTENTION = 2,   // out = attention(in), attention descriptor `attention`
  LG_NORM_ADD = 3,    // out += norm(in)
  LG_GATED = 4,       // out = act(first half of in) * second half; `epilogue` is a plain one
  LG_LOGITS = 5,      // logits = softcap(norm?(in[logit_rows]) @ w), and their argmax; value: the cap or 0; the last one
};

enum { LG_MAX_SEGMENTS = 4, LG_NO_HANDLE = -1, LG_NO_NORM = 0, LG_RMS_NORM = 1, LG_LAYER_NORM = 2 };

// `in` and `out` are indices of buffers: a row of `buffer_widths` floats a token. Buffers that name one slot of
// `buffer_slots` share memory; the caller sees to it that no two of them live at once.
typedef struct lg_op {
  int32_t kind;
  int32_t lap;                        // which lap counter its time goes to
  int32_t in, out;
  int32_t norm, norm_weight, norm_bias;
  float eps, value;
  int32_t epilogue;
  int32_t weights[LG_MAX_SEGMENTS];   // LINEAR, LOGITS: outputs one after the other; EMBED: table, positions
  int32_t num_weights;
  int32_t attention;
} lg_op;

typedef struct lg_attention {
  int32_t num_heads, num_kv_heads, head_dim;
  int32_t window;                     // 0: none
  int32_t rope;                       // index, or -1
  int32_t qk_norm, q_norm, k_norm;    // kind and two vector handles
  float eps, scale, softcap;          // softcap 0: none
  int32_t layer;                      // whose pages
} lg_attention;

typedef struct lg_rope {
  const float* inv_freq;
  int32_t half;
  int32_t reserved;
  double scale;
} lg_rope;

typedef struct lg_program_spec {
  const lg_op* ops;
  const lg_attention* attentions;
  const lg_rope* ropes;
  const int32_t* buffer_widths;
  const int32_t* buffer_slots;
  int32_t num_ops, num_attentions, num_ropes, num_buffers;
  int32_t num_laps;
  int32_t num_layers;
  int32_t kv_kind, num_pages, page_size;
  int32_t max_tokens, max_seqs;
  int32_t vocab_size;
} lg_program_spec;

typedef struct lg_program lg_program;

// One step's integers; see Batch in ops.py for their meaning. page_table has num_seqs rows of table_stride.
typedef struct lg_batch {
  const int32_t* input_ids;
  const int32_t* positions;
  const int32_t* slot_mapping;
  const int32_t* cu_seqlens_q;
  const int32_t* seq_lens;
  const int32_t* page_table;
  const int32_t* logit_rows;
  int32_t num_tokens, num_seqs, table_stride, num_logits;
} lg_batch;

// Bytes that one page of a layer takes; 0 for numbers that no layer has.
LG_API int64_t lg_kv_page_bytes(int32_t kv_kind, int32_t kv_heads, int32_t head_dim, int32_t page_size);

typedef struct lg_program_memory {
  int64_t kv_bytes;        // address space of the pages; touched as they are written
  int64_t buffer_bytes;    // the same of activations, logits and scratch
  int64_t kv_page_bytes;   // one page of all layers
} lg_program_memory;

LG_API int32_t lg_program_create(lg_context* context, const lg_program_spec* spec, lg_program** out);
LG_API void lg_program_free(lg_program* program);
LG_API void lg_program_memory_use(const lg_program* program, lg_program_memory* out);
// kv_bytes that hold the pages, in an order of the library's own. Not to be touched during a step.
LG_API uint8_t* lg_kv_pages(lg_program* program);
// Pages out of the store, or into it: count records of kv_page_bytes at `data`, each with all layers.
LG_API int32_t lg_kv_read(lg_program* program, const int32_t* pages, int64_t count, uint8_t* data);
LG_API int32_t lg_kv_write(lg_program* program, const int32_t* pages, int64_t count, const uint8_t* data);
// Sequences of one row read pages that they share together where a layer's part of them has so many bytes or more.
LG_API int32_t lg_join_from(lg_program* program, int64_t bytes);
LG_API int32_t lg_step(lg_program* program, const lg_batch* batch);
// Of the last step: num_logits rows of vocab_size floats, and the lowest index of each row's maximum (-1: a NaN).
LG_API const float* lg_logits(const lg_program* program);
LG_API const int32_t* lg_argmax(const lg_program* program);
// Nanoseconds of worker 0 since the program was made: num_laps counters, then one for waiting at barriers.
LG_API const int64_t* lg_laps(const lg_program* program);


// ---------------------------------------------------------------- choosing a token from a row of logits
typedef struct lg_choice {
  const float* logits;
  int64_t vocab;
  double draw;              // in [0, 1)
  float temperature;        // more than 0
  float top_p, min_p;       // 1 and 0: off
  int32_t top_k;            // 0: off
} lg_choice;

// See choose.h for what is kept. *token becomes -1 where a logit is a NaN or none is a finite number.
LG_API int32_t lg_choose(lg_context* context, const lg_choice* choice, int32_t* token);

#ifdef __cplusplus
}
#endif
