// The C border: every exception stops here and becomes a code and one line.
//
// Knows: the public interface. Does not know: anything that could be decided further in.
#include <unistd.h>

#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "../legato.h"
#include "context.h"
#include "probe.h"
#include "program.h"
#include "status.h"

struct lg_context {
  lg::Context inner;
};

struct lg_program {
  lg::Program inner;
};

namespace {

using lg::Error;
using lg::require;

thread_local char last_error[512] = "";

int32_t fail(lg_status code, const char* what) {
  strncpy(last_error, what, sizeof last_error - 1);
  return code;
}

template <class Body>
int32_t guarded(Body body) {
  try {
    body();
    return LG_OK;
  } catch (const Error& error) {
    return fail(error.code, error.what());
  } catch (const std::bad_alloc&) {
    return fail(LG_OUT_OF_MEMORY, "the system has no memory left for the library's own lists");
  } catch (const std::exception& error) {
    return fail(LG_UNSUPPORTED, error.what());  // a thread that the system would not start
  }
}

// One caller at a time, in the process that made the context.
class Turn {
 public:
  explicit Turn(lg::Context& context) : context_(context) {
    if (getpid() != context.owner_pid) throw Error(LG_FORKED, "the engine was made before a fork; make it in the child");
    if (context.busy.exchange(true)) throw Error(LG_BUSY, "another thread is inside this engine");
  }
  ~Turn() { context_.busy.store(false); }

 private:
  lg::Context& context_;
};

template <class Body>
int32_t in_turn(lg_context* context, Body body) {
  return guarded([&] {
    require(context != nullptr, "no context");
    Turn turn(context->inner);
    body(context->inner);
  });
}

}  // namespace

int32_t lg_abi_version(void) { return LG_ABI_VERSION; }
const char* lg_error(void) { return last_error; }

int32_t lg_isa_count(void) { return lg::isa_count(); }
const char* lg_isa_name(int32_t level) { return lg::isa_name(level); }
const char* lg_isa_obstacle(int32_t level) { return lg::isa_obstacle(level); }

int32_t lg_read_topology(const char* root, lg_topology* out) {
  return guarded([&] { *out = lg::read_topology(root).summary; });
}

int32_t lg_context_create(const char* isa, int32_t threads, lg_context** out) {
  return guarded([&] {
    require(threads >= 0 && threads <= 1024, "threads must be between 1 and 1024");
    *out = new lg_context{{isa, threads}};
  });
}

void lg_context_free(lg_context* context) { delete context; }
const char* lg_context_isa(const lg_context* context) { return context->inner.kernels.name; }
int32_t lg_context_threads(const lg_context* context) { return context->inner.pool.threads(); }
const char* lg_context_placement(const lg_context* context) { return context->inner.placement.c_str(); }
int64_t lg_context_weight_bytes(const lg_context* context) { return context->inner.weights.bytes(); }

int32_t lg_read_probe(lg_context* context, int64_t bytes, int32_t threads, int32_t passes, int64_t* pass_ns) {
  return in_turn(context, [&](lg::Context& c) {
    require(bytes >= 4096 && passes > 0, "a probe reads at least 4096 bytes once");
    require(threads > 0 && threads <= c.pool.threads(), "a probe uses the context's threads");
    lg::read_probe(c.pool, bytes, threads, passes, pass_ns);
  });
}

int32_t lg_choose(lg_context* context, const lg_choice* choice, int32_t* token) {
  return in_turn(context, [&](lg::Context& c) {
    require(choice->vocab > 0 && choice->vocab < (int64_t{1} << 31), "a choice needs a vocabulary");
    require(choice->temperature > 0 && choice->draw >= 0 && choice->draw < 1, "a choice needs a temperature and a draw");
    *token = lg::choose(c.kernels, *choice, c.choice_scratch);
  });
}

int64_t lg_kind_block(int32_t kind) { return lg::kind_block(kind); }
int64_t lg_kind_block_bytes(int32_t kind) { return lg::kind_block_bytes(kind); }

int32_t lg_pack_vector(lg_context* context, const float* values, int64_t count, int32_t* handle) {
  return in_turn(context, [&](lg::Context& c) { *handle = c.pack_vector(values, count); });
}

int32_t lg_pack_linear(lg_context* context, int32_t kind, int64_t cols, const lg_part* parts, int32_t num_parts,
                       const float* bias, int32_t* handle) {
  return in_turn(context,
                 [&](lg::Context& c) { *handle = c.pack_linear(kind, cols, parts, num_parts, bias); });
}

int32_t lg_pack_table(lg_context* context, int32_t kind, const uint8_t* data, int64_t data_bytes, int64_t rows,
                      int64_t cols, int32_t* handle) {
  return in_turn(context, [&](lg::Context& c) { *handle = c.pack_table(kind, data, data_bytes, rows, cols); });
}

int32_t lg_program_create(lg_context* context, const lg_program_spec* spec, lg_program** out) {
  return in_turn(context, [&](lg::Context& c) { *out = new lg_program{{c, *spec}}; });
}

int64_t lg_kv_page_bytes(int32_t kv_kind, int32_t kv_heads, int32_t head_dim, int32_t page_size) {
  const bool known = kv_kind >= lg::KV_BF16 && kv_kind <= lg::KV_INT4;
  if (!known || kv_heads <= 0 || head_dim <= 0 || page_size <= 0) return 0;
  return lg::kv_layout(kv_kind, kv_heads, head_dim, page_size).page_bytes;
}

void lg_program_free(lg_program* program) { delete program; }
void lg_program_memory_use(const lg_program* program, lg_program_memory* out) { *out = program->inner.memory(); }

int32_t lg_join_from(lg_program* program, int64_t bytes) {
  return guarded([&] {
    require(bytes >= 0, "a size is not negative");
    Turn turn(program->inner.context());
    program->inner.join_from(bytes);
  });
}

int32_t lg_step(lg_program* program, const lg_batch* batch) {
  return guarded([&] {
    Turn turn(program->inner.context());
    program->inner.step(*batch);
  });
}

const float* lg_logits(const lg_program* program) { return program->inner.logits(); }
uint8_t* lg_kv_pages(lg_program* program) { return program->inner.pages(); }

int32_t lg_kv_read(lg_program* program, const int32_t* pages, int64_t count, uint8_t* data) {
  return guarded([&] {
    Turn turn(program->inner.context());
    program->inner.each_part(pages, count, [&](int64_t at, uint8_t* part, int64_t n) { std::memcpy(data + at, part, n); });
  });
}

int32_t lg_kv_write(lg_program* program, const int32_t* pages, int64_t count, const uint8_t* data) {
  return guarded([&] {
    Turn turn(program->inner.context());
    program->inner.each_part(pages, count, [&](int64_t at, uint8_t* part, int64_t n) { std::memcpy(part, data + at, n); });
  });
}

const int32_t* lg_argmax(const lg_program* program) { return program->inner.argmax(); }
const int64_t* lg_laps(const lg_program* program) { return program->inner.laps(); }
