// What the fuzzer feeds.  Each draws one input, and returns if the result is right; ends the program
// if it is wrong; throws Error where the input is refused.
#pragma once

#include "draw.h"

namespace dns_onnx::fuzz {

void sparse_product(Draw& draw);
void convolution(Draw& draw);
void max_pool(Draw& draw);
void conv_concat(Draw& draw);

}  // namespace dns_onnx::fuzz
