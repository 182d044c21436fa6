// How a failure travels inside the library, up to the C border: a code and one line.
//
// Knows: lg_status codes. Does not know: what failed.
#pragma once
#include <stdexcept>
#include <string>

#include "../legato.h"

namespace lg {

struct Error : std::runtime_error {
  lg_status code;
  Error(lg_status c, const std::string& what) : std::runtime_error(what), code(c) {}
};

inline void require(bool ok, const char* what) {
  if (!ok) throw Error(LG_BAD_ARGUMENT, what);
}

}  // namespace lg
