#include "operators.h"

#include "conv.h"
#include "csr.h"
#include "left_product.h"
#include "linear.h"

namespace dns_onnx {
namespace {

constexpr size_t kValues = 1, kColumns = 2, kRowPtr = 3, kShape = 4;
constexpr size_t kBias = 5, kScale = 6, kResidual = 7;

template <typename Source>
CsrOperands operands(Source&& source) {
  return {source(kValues), source(kColumns), source(kRowPtr), source(kShape), source(kScale)};
}

// A kernel over one prepared sparse matrix: prepared once where the matrix is constant, else for
// each run (a session without graph optimizations computes the indices while it runs).
template <typename Prepared>
class SparseKernel : public Kernel {
 public:
  SparseKernel(const abi::Api* api, const abi::KernelInfo* info, const char* op_type)
      : Kernel(api), node_(api, info, op_type), where_(node_.where()) {}

  void compute(Run& run) const override {
    if (prepared_) {
      expect_constant(run, kRowPtr, has_row_ptr_, "row_ptr");
      expect_constant(run, kScale, has_scale_, "scale");
      return compute(run, *prepared_);
    }
    const CsrOperands now = operands([&](size_t i) { return run.input(i); });
    compute(run, *prepare(read_csr(where_, now)));
  }

 protected:
  virtual std::unique_ptr<const Prepared> prepare(const Csr& matrix) const = 0;
  virtual void compute(Run& run, const Prepared& prepared) const = 0;

  void prepare_constant() {
    const CsrOperands fixed = operands([&](size_t i) { return node_.constant(i); });
    has_row_ptr_ = static_cast<bool>(fixed.row_ptr);
    has_scale_ = static_cast<bool>(fixed.scale);
    if (fixed.complete()) prepared_ = prepare(read_csr(where_, fixed));
  }

  // The activation that the node's attributes describe; none by default.
  Activation activation() const {
    const Activation none = Finish().activation;
    return {node_.attribute("low", none.low), node_.attribute("high", none.high),
            node_.attribute("slope", none.slope)};
  }

  const Node& node() const { return node_; }
  const std::string& where() const { return where_; }
  Tensor float_input(const Run& run, size_t index, const char* name) const {
    Tensor tensor = run.input(index);
    if (tensor && tensor.type != abi::kFloat) {
      throw Error(where_ + ": " + name + ": expected float32, got ONNX element type " +
                  std::to_string(tensor.type) + "; cast it in the model");
    }
    return tensor;
  }

 private:
  // What was absent when the matrix was prepared must not turn up later.
  void expect_constant(const Run& run, size_t index, bool was_there, const char* name) const {
    if (!was_there && run.has_input(index)) {
      throw Error(where_ + ": " + name + ": expected a constant, as the other parts of the matrix " +
                  "are, got a value computed at run time; export the model again");
    }
  }

  Node node_;  // valid while the kernel is made
  std::string where_;
  bool has_row_ptr_ = false, has_scale_ = false;
  std::unique_ptr<const Prepared> prepared_;
};

// Strides that broadcast `c` to [m, n] as ONNX does.
Strided broadcast(const std::string& where, const Tensor& c, int64_t m, int64_t n) {
  const int64_t columns = c.dims.empty() ? 1 : c.dims.back();
  const int64_t rows = c.dims.size() < 2 ? 1 : c.dims[0];
  if (c.dims.size() > 2 || (columns != 1 && columns != n) || (rows != 1 && rows != m)) {
    throw Error(where + ": C: expected a shape that broadcasts to " + to_string({m, n}) + ", got " +
                to_string(c.dims) + "; reshape it in the model");
  }
  return {c.floats(), rows == 1 ? 0 : columns, columns == 1 ? 0 : 1};
}

void expect_matrix(const std::string& where, const Csr& matrix) {
  if (matrix.shape.size() != 2) {
    throw Error(where + ": shape: expected two dimensions, got " + to_string(matrix.shape) +
                "; export the model again");
  }
}

class Gemm final : public SparseKernel<Linear> {
 public:
  Gemm(const abi::Api* api, const abi::KernelInfo* info)
      : SparseKernel(api, info, "CsrGemm"),
        alpha_(node().attribute("alpha", 1.0F)),
        beta_(node().attribute("beta", 1.0F)),
        trans_a_(node().attribute("transA", int64_t{0}) != 0),
        trans_b_(node().attribute("transB", int64_t{0}) != 0),
        activation_(activation()) {
    prepare_constant();
  }

 protected:
  std::unique_ptr<const Linear> prepare(const Csr& matrix) const override {
    expect_matrix(where(), matrix);
    return std::make_unique<const Linear>(trans_b_ ? matrix : matrix.transposed(), alpha_);
  }

  void compute(Run& run, const Linear& linear) const override {
    const Tensor a = float_input(run, 0, "A");
    const size_t k_axis = trans_a_ ? 0 : 1;
    if (a.dims.size() != 2 || a.dims[k_axis] != linear.inputs()) {
      throw Error(where() + ": A: expected a matrix with " + std::to_string(linear.inputs()) +
                  (trans_a_ ? " rows" : " columns") + ", got shape " + to_string(a.dims) +
                  "; feed what the layer was trained on");
    }
    const int64_t m = a.dims[1 - k_axis], n = linear.outputs();
    const Tensor c = float_input(run, kBias, "C");
    const Strided bias = c ? broadcast(where(), c, m, n) : Strided{};
    const Strided rows = {a.floats(), trans_a_ ? 1 : linear.inputs(), trans_a_ ? m : 1};
    linear.run(run, m, rows, bias, beta_, activation_, run.output({m, n}));
  }

 private:
  float alpha_, beta_;
  bool trans_a_, trans_b_;
  Activation activation_;
};

class MatMul final : public SparseKernel<Linear> {
 public:
  MatMul(const abi::Api* api, const abi::KernelInfo* info)
      : SparseKernel(api, info, "CsrMatMul"), activation_(activation()) {
    prepare_constant();
  }

 protected:
  std::unique_ptr<const Linear> prepare(const Csr& matrix) const override {
    expect_matrix(where(), matrix);
    return std::make_unique<const Linear>(matrix.transposed(), 1.0F);
  }

  void compute(Run& run, const Linear& linear) const override {
    const Tensor a = float_input(run, 0, "A");
    if (a.dims.empty() || a.dims.back() != linear.inputs()) {
      throw Error(where() + ": A: expected a last dimension of " + std::to_string(linear.inputs()) +
                  ", got shape " + to_string(a.dims) + "; feed what the layer was trained on");
    }
    std::vector<int64_t> shape = a.dims;
    shape.back() = linear.outputs();
    const int64_t m = product(where(), shape.data(), shape.size() - 1);
    const Tensor c = float_input(run, kBias, "C");
    const Strided bias = c ? broadcast(where(), c, m, linear.outputs()) : Strided{};
    linear.run(run, m, {a.floats(), linear.inputs(), 1}, bias, 1.0F, activation_,
               run.output(shape));
  }

 private:
  Activation activation_;
};

// S @ B: a pointwise convolution over the columns of B, or row by row where B has only one.
class LeftMatMul final : public SparseKernel<LeftProduct> {
 public:
  LeftMatMul(const abi::Api* api, const abi::KernelInfo* info)
      : SparseKernel(api, info, "CsrLeftMatMul") {
    prepare_constant();
  }

 protected:
  std::unique_ptr<const LeftProduct> prepare(const Csr& matrix) const override {
    expect_matrix(where(), matrix);
    return std::make_unique<const LeftProduct>(where(), matrix);
  }

  void compute(Run& run, const LeftProduct& left) const override {
    const Tensor b = float_input(run, 0, "B");
    const size_t rank = b.dims.size();
    if (rank == 0 || b.dims[rank < 2 ? 0 : rank - 2] != left.inputs()) {
      throw Error(where() + ": B: expected " + std::to_string(left.inputs()) +
                  " rows, got shape " + to_string(b.dims) + "; feed what the layer was trained on");
    }
    std::vector<int64_t> shape = b.dims;
    shape[rank < 2 ? 0 : rank - 2] = left.outputs();
    const int64_t columns = rank < 2 ? 1 : b.dims.back();
    const int64_t batch = rank < 3 ? 1 : product(where(), b.dims.data(), rank - 2);
    left.run(run, batch, columns, b.floats(), run.output(shape));
  }
};

class Convolution final : public SparseKernel<Conv> {
 public:
  Convolution(const abi::Api* api, const abi::KernelInfo* info)
      : SparseKernel(api, info, "CsrConv") {
    const std::vector<int64_t> absent;
    attributes_.auto_pad = node().attribute("auto_pad", std::string("NOTSET"));
    attributes_.group = node().attribute("group", int64_t{1});
    attributes_.kernel_shape = node().attribute("kernel_shape", absent);
    attributes_.strides = node().attribute("strides", absent);
    attributes_.dilations = node().attribute("dilations", absent);
    attributes_.pads = node().attribute("pads", absent);
    activation_ = activation();
    prepare_constant();
  }

 protected:
  std::unique_ptr<const Conv> prepare(const Csr& matrix) const override {
    return std::make_unique<const Conv>(where(), matrix, attributes_);
  }

  void compute(Run& run, const Conv& conv) const override {
    const Tensor x = float_input(run, 0, "X");
    const Tensor bias = float_input(run, kBias, "B");
    if (bias && (bias.dims.size() != 1 || bias.count != conv.outputs())) {
      throw Error(where() + ": B: expected shape [" + std::to_string(conv.outputs()) + "], got " +
                  to_string(bias.dims) + "; export the model again");
    }
    const std::vector<int64_t> shape = conv.output_shape(x.dims);
    const Tensor residual = float_input(run, kResidual, "Z");
    if (residual && residual.dims != shape) {
      throw Error(where() + ": Z: expected shape " + to_string(shape) + ", got " +
                  to_string(residual.dims) + "; open the original file again");
    }
    conv.run(run, x.dims, x.floats(), bias ? bias.floats() : nullptr,
             residual ? residual.floats() : nullptr, activation_, run.output(shape));
  }

 private:
  ConvAttributes attributes_;
  Activation activation_ = Finish().activation;
};

}  // namespace

std::unique_ptr<Kernel> make_gemm(const abi::Api* api, const abi::KernelInfo* info) {
  return std::make_unique<Gemm>(api, info);
}

std::unique_ptr<Kernel> make_matmul(const abi::Api* api, const abi::KernelInfo* info) {
  return std::make_unique<MatMul>(api, info);
}

std::unique_ptr<Kernel> make_left_matmul(const abi::Api* api, const abi::KernelInfo* info) {
  return std::make_unique<LeftMatMul>(api, info);
}

std::unique_ptr<Kernel> make_conv(const abi::Api* api, const abi::KernelInfo* info) {
  return std::make_unique<Convolution>(api, info);
}

}  // namespace dns_onnx
