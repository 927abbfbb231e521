// Working memory that survives from run to run.
#pragma once

#include <atomic>
#include <cstddef>
#include <new>

namespace dns_onnx {

constexpr size_t kCacheLine = 64;
constexpr size_t kLineFloats = kCacheLine / sizeof(float);

// `floats` up to the end of a cache line.
inline size_t whole_lines(size_t floats) {
  return (floats + kLineFloats - 1) / kLineFloats * kLineFloats;
}

// Numbers the threads that ask, from 0 on.
inline size_t thread_number() {
  static std::atomic<size_t> threads{0};
  static thread_local const size_t mine = threads.fetch_add(1, std::memory_order_relaxed);
  return mine;
}

// Hands out aligned float buffers and takes them back, so that a warm layer allocates nothing.
// Any number of threads may ask at once.  Each gets what it had last, without a lock: where cores
// share no cache, a line that another core wrote takes half a microsecond to come.
class Scratch {
  struct alignas(kCacheLine) Slot {
    std::atomic<bool> taken{false};
    float* data = nullptr;
    size_t floats = 0;
  };

 public:
  // A borrowed buffer; `data` is null where memory ran out.
  class Lease {
   public:
    Lease(Scratch& owner, size_t floats) : slot_(owner.take()) {
      Slot* const slot = slot_ == nullptr ? &own_ : slot_;
      if (slot->data == nullptr || slot->floats < floats) grow(*slot, floats);
      data_ = slot->data;
    }
    ~Lease() {
      if (slot_ != nullptr) slot_->taken.store(false, std::memory_order_release);
      release(own_);
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    float* data() const { return data_; }

   private:
    Slot* slot_;  // null where all were taken
    Slot own_;
    float* data_;
  };

  Scratch() = default;
  ~Scratch() {
    for (Slot& slot : slots_) release(slot);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

 private:
  static constexpr size_t kSlots = 32, kOfThread = 2;  // the latter: how many one holds at most

  static void release(Slot& slot) {
    ::operator delete(slot.data, std::align_val_t{kCacheLine});
    slot.data = nullptr;
    slot.floats = 0;
  }

  static void grow(Slot& slot, size_t floats) {
    release(slot);
    const std::align_val_t line{kCacheLine};
    slot.data = static_cast<float*>(::operator new(floats * sizeof(float), line, std::nothrow));
    slot.floats = slot.data == nullptr ? 0 : floats;
  }

  Slot* take() {
    const size_t first = thread_number() * kOfThread;
    for (size_t i = 0; i < kSlots; ++i) {
      Slot& slot = slots_[(first + i) % kSlots];
      if (slot.taken.load(std::memory_order_relaxed)) continue;
      if (!slot.taken.exchange(true, std::memory_order_acquire)) return &slot;
    }
    return nullptr;
  }

  Slot slots_[kSlots];
};

}  // namespace dns_onnx
