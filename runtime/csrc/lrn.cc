// Local response normalization: the standard operator, on a kernel of ours.  ONNX Runtime's takes a
// scalar power for each entry, which in a pruned net is most of the time.

#include <algorithm>

#include "kernels/kernel_set.h"
#include "operators.h"

namespace dns_onnx {
namespace {

constexpr int64_t kChannelsPerTask = 8;

class Lrn final : public Kernel {
 public:
  Lrn(const abi::Api* api, const abi::KernelInfo* info) : Kernel(api) {
    const Node node(api, info, "LRN");
    where_ = node.where();
    size_ = node.attribute("size", int64_t{0});
    alpha_ = node.attribute("alpha", 1e-4F);
    beta_ = node.attribute("beta", 0.75F);
    bias_ = node.attribute("bias", 1.0F);
    if (size_ < 1) {
      throw Error(where_ + ": size: expected 1 or more, got " + std::to_string(size_) +
                  "; write the attribute as ONNX LRN does");
    }
  }

  void compute(Run& run) const override {
    const Tensor x = run.input(0);
    if (x.dims.size() < 2) {
      throw Error(where_ + ": X: expected two dimensions or more, got " + to_string(x.dims));
    }
    float* const y = run.output(x.dims);
    if (x.count == 0) return;
    const int64_t channels = x.dims[1], images = x.dims[0], plane = x.count / (images * channels);
    const int64_t parts = (channels + kChannelsPerTask - 1) / kChannelsPerTask;
    const int64_t before = std::min((size_ - 1) / 2, channels);
    const int64_t after = std::min(size_ - 1 - (size_ - 1) / 2, channels);
    const float scale = alpha_ / static_cast<float>(size_);
    auto task = [&](size_t index) {
      const int64_t at = static_cast<int64_t>(index), image = at / parts;
      const int64_t first = at % parts * kChannelsPerTask;
      for (int64_t c = first; c < std::min(first + kChannelsPerTask, channels); ++c) {
        const int64_t offset = (image * channels + c) * plane;
        kernel_set().lrn({x.floats() + offset, y + offset, plane, std::max(-before, -c),
                          std::min(after, channels - 1 - c), scale, beta_, bias_});
      }
    };
    run.run(static_cast<size_t>(images * parts), task);
  }

 private:
  std::string where_;
  int64_t size_;
  float alpha_, beta_, bias_;
};

}  // namespace

std::unique_ptr<Kernel> make_lrn(const abi::Api* api, const abi::KernelInfo* info) {
  return std::make_unique<Lrn>(api, info);
}

}  // namespace dns_onnx
