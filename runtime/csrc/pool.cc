// Max pooling over two axes: the standard operator, on a kernel of ours.  ONNX Runtime's works on
// maps in blocks, into which and back from which it brings what a sparse kernel gives and takes.

#include <algorithm>
#include <atomic>

#include "kernels/kernel_set.h"
#include "operators.h"
#include "scratch.h"

namespace dns_onnx {
namespace {

constexpr int64_t kFloatsPerTask = 1 << 14;
constexpr int64_t kMost = int64_t{1} << 24;  // keeps every product below 2^63

class MaxPool final : public Kernel {
 public:
  MaxPool(const abi::Api* api, const abi::KernelInfo* info) : Kernel(api) {
    const Node node(api, info, "MaxPool");
    where_ = node.where();
    const std::vector<int64_t> absent;
    ceil_ = node.attribute("ceil_mode", int64_t{0}) != 0;
    kernel_ = node.attribute("kernel_shape", absent);
    strides_ = node.attribute("strides", absent);
    pads_ = node.attribute("pads", absent);
    if (strides_.empty()) strides_.assign(2, 1);
    if (pads_.empty()) pads_.assign(4, 0);
    bool fits = kernel_.size() == 2 && strides_.size() == 2 && pads_.size() == 4;
    for (size_t i = 0; fits && i < 4; ++i) {
      const int64_t k = kernel_[i % 2], s = strides_[i % 2], p = pads_[i];
      fits = k > 0 && k < kMost && s > 0 && s < kMost && p >= 0 && p < k;
    }
    if (!fits) {
      throw Error(where_ +
                  ": kernel_shape, strides, pads: expected two axes, and pads less than the "
                  "kernel, got " +
                  to_string(kernel_) + ", " + to_string(strides_) + ", " + to_string(pads_) +
                  "; open the original file again");
    }
  }

  void compute(Run& run) const override {
    const Tensor x = run.input(0);
    if (x.dims.size() != 4 || x.dims[2] >= kMost || x.dims[3] >= kMost) {
      throw Error(where_ + ": X: expected four dimensions, got " + to_string(x.dims));
    }
    PoolJob job{};
    job.height = x.dims[2];
    job.width = x.dims[3];
    job.out_height = positions(job.height, 0);
    job.out_width = positions(job.width, 1);
    for (size_t axis = 0; axis < 2; ++axis) {
      job.kernel[axis] = kernel_[axis];
      job.stride[axis] = strides_[axis];
      job.pad[axis] = pads_[axis];
    }
    job.line_floats = std::max(job.pad[1] + job.width,
                               (job.out_width - 1) * job.stride[1] + job.kernel[1]);
    float* const y = run.output({x.dims[0], x.dims[1], job.out_height, job.out_width});
    const int64_t maps = x.dims[0] * x.dims[1], size = job.height * job.width;
    if (maps == 0 || job.out_height == 0 || job.out_width == 0) return;
    const int64_t step = std::max<int64_t>(1, kFloatsPerTask / size);
    std::atomic<bool> failed{false};
    auto task = [&](size_t index) {
      const Scratch::Lease line(scratch_, static_cast<size_t>(job.line_floats));
      if (line.data() == nullptr) {
        failed = true;
        return;
      }
      PoolJob own = job;
      own.line = line.data();
      const int64_t first = static_cast<int64_t>(index) * step;
      for (int64_t map = first; map < std::min(maps, first + step); ++map) {
        own.x = x.floats() + map * size;
        own.y = y + map * job.out_height * job.out_width;
        kernel_set().pool(own);
      }
    };
    run.run(static_cast<size_t>((maps + step - 1) / step), task);
    if (failed) throw Error(where_ + ": out of memory; use a smaller batch");
  }

 private:
  // Windows along an axis; none begins behind the map.  Source: ONNX MaxPool.
  int64_t positions(int64_t size, size_t axis) const {
    const int64_t free = size + pads_[axis] + pads_[axis + 2] - kernel_[axis];
    if (size == 0 || free < 0) return 0;
    const int64_t stride = strides_[axis];
    const int64_t count = (free + (ceil_ ? stride - 1 : 0)) / stride + 1;
    return (count - 1) * stride >= size + pads_[axis] ? count - 1 : count;
  }

  std::string where_;
  bool ceil_;
  std::vector<int64_t> kernel_, strides_, pads_;
  mutable Scratch scratch_;
};

}  // namespace

std::unique_ptr<Kernel> make_max_pool(const abi::Api* api, const abi::KernelInfo* info) {
  return std::make_unique<MaxPool>(api, info);
}

}  // namespace dns_onnx
