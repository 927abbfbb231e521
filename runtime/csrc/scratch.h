// Working memory that survives from run to run.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace dns_onnx {

constexpr size_t kCacheLine = 64;

// Hands out aligned float buffers and takes them back, so that a warm layer allocates nothing.
// Any number of threads may ask at once.
class Scratch {
 public:
  // A borrowed buffer; `data` is null where memory ran out.
  class Lease {
   public:
    Lease(Scratch& owner, size_t floats) : owner_(owner), buffer_(owner.take(floats)) {}
    ~Lease() { owner_.give(buffer_); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    float* data() const { return buffer_.data; }

   private:
    friend class Scratch;
    Scratch& owner_;
    struct Buffer {
      float* data = nullptr;
      size_t floats = 0;
    } buffer_;
  };

  Scratch() { free_.reserve(kKept); }
  ~Scratch() {
    for (const Lease::Buffer& buffer : free_) release(buffer);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

 private:
  using Buffer = Lease::Buffer;
  static constexpr size_t kKept = 256;

  static void release(const Buffer& buffer) {
    ::operator delete(buffer.data, std::align_val_t{kCacheLine});
  }

  Buffer take(size_t floats) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (size_t i = free_.size(); i-- > 0;) {  // the last one given back is the warmest
        if (free_[i].floats < floats) continue;
        const Buffer found = free_[i];
        free_[i] = free_.back();
        free_.pop_back();
        return found;
      }
    }
    void* data = ::operator new(floats * sizeof(float), std::align_val_t{kCacheLine}, std::nothrow);
    return {static_cast<float*>(data), floats};
  }

  void give(const Buffer& buffer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.size() < kKept) {
      free_.push_back(buffer);
    } else {
      release(buffer);
    }
  }

  std::mutex mutex_;
  std::vector<Buffer> free_;
};

}  // namespace dns_onnx
