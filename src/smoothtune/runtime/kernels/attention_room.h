// Scratch memory of a thread: handed out piece by piece, given back all at once, kept for the next unit of work.
#pragma once

#include <memory>

#include "common.h"

namespace attention {

class Room {
 public:
  // A 64-byte aligned array that lives until `clear`; its contents are whatever was there.
  template <typename T>
  T* take(int64_t count) {
    const size_t bytes = (size_t(count) * sizeof(T) + 63) / 64 * 64 + kSkew;
    if (used_ + bytes > size_) grow(bytes);
    char* at = begin_ + used_;
    used_ += bytes;
    total_ += bytes;
    return reinterpret_cast<T*>(at);
  }

  void clear() {
    if (pieces_.size() > 1) {
      pieces_.clear();
      grow(total_);
    }
    used_ = total_ = 0;
  }

 private:
  // Arrays of 4096 bytes would otherwise begin at one place of their pages, where a load waits for an unrelated store.
  static constexpr size_t kSkew = 192;
  static constexpr size_t kPiece = size_t(1) << 17;

  void grow(size_t bytes) {
    size_ = std::max(bytes, kPiece);
    pieces_.emplace_back(new char[size_ + 64]);
    begin_ = pieces_.back().get();
    begin_ += (64 - reinterpret_cast<uintptr_t>(begin_) % 64) % 64;
    used_ = 0;
  }

  std::vector<std::unique_ptr<char[]>> pieces_;
  char* begin_ = nullptr;
  size_t used_ = 0, size_ = 0, total_ = 0;
};

}  // namespace attention
