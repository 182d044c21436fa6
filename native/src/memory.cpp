// Memory straight from the system: see memory.h.
//
// Knows: mmap and madvise. Does not know: what is kept there.
#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <string>
#include <utility>

#include "kernels.h"
#include "status.h"

namespace lg {
namespace {

constexpr int64_t kLargePage = int64_t{2} << 20;
constexpr int64_t kArenaStep = int64_t{32} << 20;

}  // namespace

Region::Region(int64_t bytes, const char* what) : bytes_(bytes) {
  if (bytes == 0) return;
  mapped_bytes_ = round_up(bytes, kLargePage) + kLargePage;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#if defined(MAP_NORESERVE)
  flags |= MAP_NORESERVE;
#endif
  void* at = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (at == MAP_FAILED)
    throw Error(LG_OUT_OF_MEMORY, std::to_string(bytes) + " bytes for " + what + " could not be had");
  mapped_ = static_cast<uint8_t*>(at);
  data_ = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<int64_t>(at), kLargePage));
#if defined(MADV_HUGEPAGE)
  if (bytes >= kLargePage) madvise(data_, round_up(bytes, kLargePage), MADV_HUGEPAGE);  // advice: nothing to do if refused
#endif
}

Region::~Region() {
  if (mapped_ != nullptr) munmap(mapped_, mapped_bytes_);
}

Region::Region(Region&& other) noexcept { *this = std::move(other); }

Region& Region::operator=(Region&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(mapped_, other.mapped_);
  std::swap(bytes_, other.bytes_);
  std::swap(mapped_bytes_, other.mapped_bytes_);
  return *this;
}

uint8_t* Arena::take(int64_t bytes) {
  bytes = round_up(std::max<int64_t>(bytes, 1), kAlign);
  if (bytes > left_) {
    regions_.emplace_back(std::max(bytes, kArenaStep), what_);
    left_ = regions_.back().bytes();
  }
  const Region& region = regions_.back();
  uint8_t* piece = region.data() + (region.bytes() - left_);
  left_ -= bytes;
  taken_ += bytes;
  return piece;
}

}  // namespace lg
