// Prints the instruction sets that this machine runs, the best one first. Given the name of any,
// multiplies on it, whether the machine runs it or not.

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "isa.h"
#include "linear.h"

namespace {

constexpr qwell::Isa kAll[] = {qwell::Isa::portable,    qwell::Isa::avx2, qwell::Isa::avx512,
                               qwell::Isa::avx512_bf16, qwell::Isa::neon, qwell::Isa::neon_dotprod};

void multiply(qwell::Isa isa) {
  const std::vector<float> x(qwell::kGroup, 1.0F);
  const std::vector<std::uint8_t> weight(
      static_cast<std::size_t>(qwell::panel_bytes(qwell::WeightFormat::int8, qwell::kGroup)), 1);
  std::vector<float> y(qwell::kPanelRows);
  qwell::Pool pool(1);
  qwell::linear(isa, pool,
                {.x = x.data(),
                 .weight = weight.data(),
                 .bias = nullptr,
                 .y = y.data(),
                 .rows = 1,
                 .columns = qwell::kGroup,
                 .outputs = qwell::kPanelRows,
                 .format = qwell::WeightFormat::int8});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) {
    for (const qwell::Isa isa : qwell::runnable_isas()) std::puts(qwell::isa_name(isa));
    return 0;
  }
  for (const qwell::Isa isa : kAll) {
    if (std::string(argv[1]) == qwell::isa_name(isa)) {
      multiply(isa);
      return 0;
    }
  }
  std::fprintf(stderr, "no instruction set is called %s\n", argv[1]);
  return 2;
}
