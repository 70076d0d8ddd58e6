#pragma once
#include <string>

#include "base/error.h"

namespace greta::test {

/// What the call's error says; "" where it makes none.
template <class Call>
std::string refusal(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace greta::test
