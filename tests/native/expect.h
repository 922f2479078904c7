#pragma once

#include <cstdio>
#include <string>

// Counts of what held; the first failures are printed.
inline int passed = 0;
inline int failed = 0;

inline void expect(bool holds, const std::string& what) {
  if (holds) {
    ++passed;
  } else if (++failed <= 20) {
    std::printf("FAILED %s\n", what.c_str());
  }
}

// Ends with "N passed, N failed"; the exit status tells as well.
inline int report() {
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
