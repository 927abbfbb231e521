// Whole nodes, attributes and all: MaxPool, and convolutions that write into one output.

#include <algorithm>
#include <limits>

#include "conv.h"
#include "node.h"
#include "operators.h"
#include "targets.h"

namespace dns_onnx::fuzz {
namespace {

constexpr int64_t kMostInputs = 1 << 16;
constexpr size_t kOperands = 8;  // of a branch

// check: of a node that has run.
void run(Draw& draw, const Kernel& kernel, const FakeNode& node,
         const std::function<void(const FakeNode&)>& check) {
  in_session(draw, [&](Parallel& parallel) {
    FakeNode own = node;
    own.parallel = &parallel;
    Run now(own.api(), own.context());
    kernel.compute(now);
    check(own);
  });
}

// Now and then an attribute is damaged, or left out.
void damage(Draw& draw, FakeNode& node) {
  if (!draw.one_in(3)) return;
  auto list = node.lists.begin();
  std::advance(list, draw.below(static_cast<int64_t>(node.lists.size())));
  if (draw.one_in(4)) {
    node.lists.erase(list);
  } else {
    draw.damage(list->second);
  }
}

// One axis of a pooling, worked out anew.
struct Axis {
  int64_t size, kernel, stride, before, after;

  int64_t positions(bool ceil) const {
    int64_t count = 0;
    for (int64_t at = -before; at < size; at += stride) {
      const int64_t end = at + kernel;
      // a window may reach behind the padding only by less than a stride, and only with `ceil`
      if (end > size + after && (!ceil || end - (size + after) >= stride)) break;
      ++count;
    }
    return size == 0 || size + before + after < kernel ? 0 : count;
  }
};

float largest(const float* map, const Axis& y, const Axis& x, int64_t row, int64_t column) {
  float most = -std::numeric_limits<float>::infinity();
  const int64_t top = row * y.stride - y.before, left = column * x.stride - x.before;
  for (int64_t i = std::max<int64_t>(0, top); i < std::min(y.size, top + y.kernel); ++i) {
    for (int64_t k = std::max<int64_t>(0, left); k < std::min(x.size, left + x.kernel); ++k) {
      most = std::max(most, map[i * x.size + k]);
    }
  }
  return most;
}

void check_pool(const FakeNode& node) {
  const auto list = [&](const char* name, std::vector<int64_t> absent) {
    const auto found = node.lists.find(name);
    return found == node.lists.end() || found->second.empty() ? absent : found->second;
  };
  const std::vector<int64_t> kernel = list("kernel_shape", {}), pads = list("pads", {0, 0, 0, 0});
  const std::vector<int64_t> strides = list("strides", {1, 1});
  const Held& in = node.inputs[0];
  const bool ceil = node.integers.at("ceil_mode") != 0;
  const Axis y{in.dims[2], kernel[0], strides[0], pads[0], pads[2]};
  const Axis x{in.dims[3], kernel[1], strides[1], pads[1], pads[3]};
  const int64_t height = y.positions(ceil), width = x.positions(ceil);
  if (node.output.dims != std::vector<int64_t>{in.dims[0], in.dims[1], height, width}) {
    fail("pool: shape " + to_string(node.output.dims) + " of " + to_string(in.dims));
  }
  const float* got = node.output.floats.data();
  for (int64_t map = 0; map < in.dims[0] * in.dims[1]; ++map) {
    for (int64_t row = 0; row < height; ++row) {
      for (int64_t column = 0; column < width; ++column) {
        const float* const from = in.floats.data() + map * y.size * x.size;
        compare("pool", *got++, largest(from, y, x, row, column));
      }
    }
  }
}

Held pool_input(Draw& draw) {
  std::vector<int64_t> dims = {draw.below(3), draw.below(draw.one_in(8) ? 40 : 6)};
  while (dims.size() < 4) dims.push_back(draw.below(draw.one_in(8) ? 60 : 14));
  if (draw.one_in(16)) dims.pop_back();
  std::vector<float> x = draw.floats(product("fuzz", dims.data(), dims.size()));
  if (!x.empty()) {
    const float endless = std::numeric_limits<float>::infinity();
    float& odd = x[static_cast<size_t>(draw.below(static_cast<int64_t>(x.size())))];
    if (draw.one_in(8)) odd = draw.one_in(2) ? endless : -endless;
  }
  return Held::of(std::move(dims), std::move(x));
}

// One branch's operands and attributes; all branches have kernels of their own, and give maps of
// one size unless something is damaged.
void add_branch(Draw& draw, FakeNode& node, int64_t channels, const std::vector<int64_t>& strides) {
  const int64_t group = draw.one_in(3) && channels % 2 == 0 ? 2 : 1;
  const int64_t kernel = 1 + 2 * draw.below(2), dilation = 1 + draw.below(2);
  const int64_t filters = group * (1 + draw.below(draw.one_in(8) ? 60 : 9));
  Arrays arrays = draw.arrays({filters, std::max<int64_t>(1, channels / group), kernel, kernel});
  const int64_t rows = arrays.shape[0];
  if (draw.one_in(8)) draw.damage(arrays);
  const auto nnz = static_cast<int64_t>(arrays.values.size());
  std::vector<Held> operands(kOperands);
  operands[1] = Held::of({nnz}, std::move(arrays.values));
  operands[2] = Held::of(std::move(arrays.columns));
  if (!arrays.gaps) operands[3] = Held::of(std::move(arrays.row_ptr));
  operands[4] = Held::of(std::move(arrays.shape));
  const int64_t biased = draw.one_in(16) ? draw.below(9) : rows;
  if (!draw.one_in(3)) operands[5] = Held::of({biased}, draw.floats(biased));
  node.inputs.insert(node.inputs.end(), operands.begin(), operands.end());
  node.lists["groups"].push_back(group);
  for (const int64_t stride : strides) node.lists["strides"].push_back(stride);
  node.lists["dilations"].insert(node.lists["dilations"].end(), 2, dilation);
  node.lists["pads"].insert(node.lists["pads"].end(), 4, kernel / 2 * dilation);
}

// Maps of one size for all branches.
void feed(Draw& draw, FakeNode& node, int64_t channels) {
  std::vector<int64_t> x = {draw.below(3), channels};
  while (x.size() < 4) x.push_back(draw.below(draw.one_in(8) ? 40 : 16));
  for (size_t i = 0; i < node.inputs.size(); i += kOperands) {
    node.inputs[i] = Held::of(x, draw.floats(product("fuzz", x.data(), x.size())));
  }
}

// Each branch alone gives the same maps, one behind the other.
void check_branches(const FakeNode& node, const Activation& activation, Parallel& parallel) {
  int64_t before = 0;
  for (size_t i = 0; i * kOperands < node.inputs.size(); ++i) {
    const Held* operands = node.inputs.data() + i * kOperands;
    const auto tensor = [&](size_t place) {
      const Held& held = operands[place];
      const auto count = static_cast<int64_t>(std::max(held.floats.size(), held.integers.size()));
      const void* data = held.type == abi::kFloat ? static_cast<const void*>(held.floats.data())
                                                  : static_cast<const void*>(held.integers.data());
      return Tensor{held.type, held.dims, count, data};
    };
    const auto share = [&](const char* name, size_t size) {
      const auto first = node.lists.at(name).begin() + static_cast<std::ptrdiff_t>(i * size);
      return std::vector<int64_t>(first, first + static_cast<std::ptrdiff_t>(size));
    };
    ConvAttributes attributes;
    attributes.auto_pad = "NOTSET";
    attributes.group = share("groups", 1)[0];
    attributes.strides = share("strides", 2);
    attributes.dilations = share("dilations", 2);
    attributes.pads = share("pads", 4);
    const CsrOperands matrix = {tensor(1), tensor(2), tensor(3), tensor(4), {}};
    const Conv conv("fuzz", read_csr("fuzz", matrix), attributes);
    const std::vector<int64_t> dims = conv.output_shape(operands[0].dims);
    const int64_t maps = product("fuzz", dims.data() + 1, dims.size() - 1);
    std::vector<float> y(static_cast<size_t>(dims[0] * maps));
    const Tensor bias = tensor(5);
    conv.run(parallel, operands[0].dims, operands[0].floats.data(), bias ? bias.floats() : nullptr,
             nullptr, activation, y.data());
    const int64_t whole = dims[0] == 0
                              ? 0
                              : static_cast<int64_t>(node.output.floats.size()) / dims[0];
    for (int64_t at = 0; at < dims[0] * maps; ++at) {
      const int64_t there = at / maps * whole + before + at % maps;
      compare("branch", node.output.floats[static_cast<size_t>(there)],
              y[static_cast<size_t>(at)]);
    }
    before += maps;
  }
}

}  // namespace

void max_pool(Draw& draw) {
  FakeNode node;
  for (int64_t axis = 0; axis < 2; ++axis) {
    const int64_t kernel = 1 + draw.below(draw.one_in(4) ? 12 : 3);
    node.lists["kernel_shape"].push_back(kernel);
    node.lists["strides"].push_back(1 + draw.below(draw.one_in(4) ? 12 : 3));
  }
  for (size_t i = 0; i < 4; ++i) {
    node.lists["pads"].push_back(draw.below(node.lists["kernel_shape"][i % 2]));
  }
  node.integers["ceil_mode"] = draw.below(2);
  damage(draw, node);
  const std::unique_ptr<Kernel> kernel = make_max_pool(node.api(), node.info());
  node.inputs.resize(1);
  for (int64_t times = 1 + draw.below(3); times > 0; --times) {
    node.inputs[0] = pool_input(draw);
    run(draw, *kernel, node, check_pool);
  }
}

void conv_concat(Draw& draw) {
  FakeNode node;
  const Activation activation = draw.activation();
  node.numbers = {
      {"low", activation.low}, {"high", activation.high}, {"slope", activation.slope}};
  const int64_t channels = 1 + draw.below(20);
  const std::vector<int64_t> strides = {1 + draw.below(2), 1 + draw.below(2)};
  const int64_t count = draw.one_in(16) ? draw.below(7) : 1 + draw.below(4);
  for (int64_t i = 0; i < count; ++i) add_branch(draw, node, channels, strides);
  node.integers["branches"] = draw.one_in(16) ? draw.below(7) : count;
  if (count > 0) damage(draw, node);
  const std::unique_ptr<Kernel> kernel = make_conv_concat(node.api(), node.info());
  const std::unique_ptr<Parallel> alone = draw.loop();
  for (int64_t times = 1 + draw.below(3); times > 0; --times) {
    feed(draw, node, channels);
    run(draw, *kernel, node,
        [&](const FakeNode& ran) { check_branches(ran, activation, *alone); });
  }
}

}  // namespace dns_onnx::fuzz
