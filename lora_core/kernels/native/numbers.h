// Numbers as the kernels read and write them. All arithmetic is in fp32; a row may be stored in fp32 or bf16.
#pragma once

#include <cstdint>
#include <cstring>

namespace lora_core {

struct bfloat16 {
  uint16_t bits;
};

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float load(float x) { return x; }

inline float load(bfloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }

inline void store(float& to, float x) { to = x; }

// Rounds to the nearest, ties to even; a NaN stays one.
inline void store(bfloat16& to, float x) {
  uint32_t bits = bit_cast<uint32_t>(x);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

}  // namespace lora_core
