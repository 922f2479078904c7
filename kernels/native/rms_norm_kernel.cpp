// Compiled once per instruction set; QWELL_ISA names the set and the namespace.

#include <cstring>

#include "rms_norm.h"
#include "simd/simd.h"
#include "simd/sum.h"

namespace qwell::QWELL_ISA {
namespace {

// Lanes of one step, and so the number of partial sums of a row. The same for every
// instruction set: this fixes one order of summation for all of them.
constexpr int kBlock = 32;
constexpr int kRegisters = kBlock / Vec::width;

// Null stays null: arithmetic on a null pointer is undefined.
template <class T>
T* offset(T* pointer, std::int64_t elements) {
  return pointer != nullptr ? pointer + elements : nullptr;
}

// One block of a row: adds the residual, keeps the rounded sum, accumulates its squares.
template <class T>
void add_squares(const T* x, const T* residual, T* s, Vec (&squares)[kRegisters]) {
  for (int r = 0; r < kRegisters; ++r) {
    const int lane = r * Vec::width;
    Vec value = load(x + lane);
    if (residual != nullptr) {
      value = rounded<T>(value + load(residual + lane));
      store(s + lane, value);
    }
    squares[r] = squares[r] + value * value;
  }
}

template <class T>
void scale(const T* s, const T* weight, Vec rstd, T* y) {
  for (int lane = 0; lane < kBlock; lane += Vec::width) {
    store(y + lane, rounded<T>(load(s + lane) * rstd) * load(weight + lane));
  }
}

// The end of a row that fills no block, padded with zeros, which add nothing to the squares.
template <class T>
struct Tail {
  T lanes[kBlock] = {};

  Tail() = default;
  Tail(const T* from, std::int64_t count) {
    std::memcpy(lanes, from, static_cast<std::size_t>(count) * sizeof(T));
  }
  void copy_to(T* to, std::int64_t count) const {
    std::memcpy(to, lanes, static_cast<std::size_t>(count) * sizeof(T));
  }
};

template <class T>
void norm_row(const T* x, const T* residual, const T* weight, T* y, T* s, std::int64_t width,
              float eps) {
  const std::int64_t tail = width % kBlock;
  const std::int64_t whole = width - tail;
  const T* sum = residual != nullptr ? s : x;

  Vec squares[kRegisters];
  for (Vec& partial : squares) partial = splat(0.0F);
  for (std::int64_t i = 0; i < whole; i += kBlock) {
    add_squares(x + i, offset(residual, i), offset(s, i), squares);
  }
  if (tail > 0) {
    const Tail<T> tail_x(x + whole, tail);
    if (residual != nullptr) {
      const Tail<T> tail_residual(residual + whole, tail);
      Tail<T> tail_s;
      add_squares(tail_x.lanes, tail_residual.lanes, tail_s.lanes, squares);
      tail_s.copy_to(s + whole, tail);
    } else {
      add_squares<T>(tail_x.lanes, nullptr, nullptr, squares);
    }
  }

  const float mean = sum_lanes(squares) / static_cast<float>(width);
  const Vec rstd = splat(1.0F / __builtin_sqrtf(mean + eps));

  for (std::int64_t i = 0; i < whole; i += kBlock) scale(sum + i, weight + i, rstd, y + i);
  if (tail > 0) {
    const Tail<T> tail_s(sum + whole, tail);
    const Tail<T> tail_weight(weight + whole, tail);
    Tail<T> tail_y;
    scale(tail_s.lanes, tail_weight.lanes, rstd, tail_y.lanes);
    tail_y.copy_to(y + whole, tail);
  }
}

template <class T>
void norm_rows(const RmsNormCall& call) {
  const auto* x = static_cast<const T*>(call.x);
  const auto* residual = static_cast<const T*>(call.residual);
  const auto* weight = static_cast<const T*>(call.weight);
  auto* y = static_cast<T*>(call.y);
  auto* s = static_cast<T*>(call.s);
  for (std::int64_t row = 0; row < call.rows; ++row) {
    const std::int64_t start = row * call.width;
    norm_row(x + start, offset(residual, start), weight, y + start, offset(s, start), call.width,
             call.eps);
  }
}

}  // namespace

void rms_norm(const RmsNormCall& call) {
  switch (call.dtype) {
    case DType::float32:
      return norm_rows<float>(call);
    case DType::bfloat16:
      return norm_rows<BFloat16>(call);
    case DType::float16:
      return norm_rows<Float16>(call);
  }
}

}  // namespace qwell::QWELL_ISA
