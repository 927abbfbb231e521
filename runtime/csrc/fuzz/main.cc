// Feeds random and mutated layers and nodes to the kernels: `dns_onnx_fuzz <rounds> [seed]`.
//
// Built on request (-DDNS_ONNX_FUZZ=ON), best with -DDNS_ONNX_SANITIZE=address,undefined.  Exit
// status 1 says what went wrong.

#include <cstdio>
#include <cstdlib>

#include "targets.h"

int main(int count, char** arguments) {
  using namespace dns_onnx;
  struct Target {
    const char* name;
    void (*run)(fuzz::Draw&);
    long right = 0, refused = 0;
  } targets[] = {{"products", fuzz::sparse_product},
                 {"convolutions", fuzz::convolution},
                 {"MaxPool", fuzz::max_pool},
                 {"CsrConvConcat", fuzz::conv_concat}};
  const long rounds = count > 1 ? std::atol(arguments[1]) : 10000;
  const long seed = count > 2 ? std::atol(arguments[2]) : 1;
  fuzz::Draw draw(static_cast<uint64_t>(seed));
  for (long i = 0; i < rounds; ++i) {
    Target& target = targets[draw.below(4)];
    try {
      target.run(draw);
      target.right += 1;
    } catch (const Error&) {
      target.refused += 1;
    }
  }
  std::printf("%s: %ld rounds", kernel_set().name, rounds);
  for (const Target& target : targets) {
    std::printf("; %s: %ld right, %ld refused", target.name, target.right, target.refused);
  }
  std::printf("\n");
  return 0;
}
