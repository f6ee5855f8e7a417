// Which elements dropout keeps.
#pragma once

#include <algorithm>

#include "numbers.h"

namespace lora_core {

// The bits of an element are a function of the seed and the element's number alone, so a mask need not be kept: it is
// made again from the seed, in any order and on any number of threads. They are the output of splitmix64 (Steele, Lea
// and Flood 2014, https://doi.org/10.1145/2714064.2660195), four elements to a number of 64 bits.
struct Keep {
  uint64_t seed;
  uint32_t dropped;  // below 65536; so many of the 65536 values of an element's 16 bits drop it

  // Calls work(first, count, keep) for parts of the elements from <= i < to, in order; `keep` holds 0 or 1 for each.
  template <class F>
  void over(int64_t from, int64_t to, const F& work) const {
    constexpr int64_t PART = 128;
    for (int64_t start = from / 4 * 4; start < to; start += PART) {
      uint64_t words[PART / 4];
      uint16_t bits[PART];
      uint8_t keep[PART];
      const uint64_t own = seed + uint64_t(start / 4 + 1) * STEP;
      const uint16_t least = uint16_t(dropped);
#pragma omp simd
      for (int64_t i = 0; i < PART / 4; i++) words[i] = mix(own + uint64_t(i) * STEP);
      std::memcpy(bits, words, sizeof(bits));
#pragma omp simd
      for (int64_t i = 0; i < PART; i++) keep[i] = bits[i] >= least;
      int64_t first = std::max(from, start);
      work(first, std::min(to, start + PART) - first, keep + (first - start));
    }
  }

 private:
  static constexpr uint64_t STEP = 0x9e3779b97f4a7c15;

  static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
};

}  // namespace lora_core
