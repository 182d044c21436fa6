// Memory straight from the system: large, zeroed when first touched, in 2 MiB pages where there are some.
//
// Knows: mmap and madvise. Does not know: what is kept there.
#pragma once
#include <cstdint>
#include <vector>

namespace lg {

// One mapping; costs address space until it is touched.
class Region {
 public:
  Region() = default;
  // `what` names it in the error when the system has no such room.
  Region(int64_t bytes, const char* what);
  ~Region();
  Region(Region&& other) noexcept;
  Region& operator=(Region&& other) noexcept;
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* data_ = nullptr;
  uint8_t* mapped_ = nullptr;
  int64_t bytes_ = 0;
  int64_t mapped_bytes_ = 0;
};

// Hands out pieces of regions one after the other, so that small weights share large pages. Freed all at once.
class Arena {
 public:
  explicit Arena(const char* what) : what_(what) {}
  uint8_t* take(int64_t bytes);
  int64_t bytes() const { return taken_; }

 private:
  const char* what_;
  std::vector<Region> regions_;
  int64_t left_ = 0;
  int64_t taken_ = 0;
};

}  // namespace lg
