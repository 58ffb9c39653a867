#pragma once

#include <algorithm>
#include <cstddef>

namespace faiss_turboquant {

/** Of what pays only sometimes, which shows when it is tried: after each time
 * that it has not, it is left for twice as long as before. In whatever unit the
 * caller counts: searches, lists, codes. */
class Backoff {
   public:
    /// @param patience  so many times in a row it may fail before it is left
    constexpr Backoff(size_t first, size_t longest, size_t patience = 0)
            : first_(first),
              longest_(longest),
              patience_(patience),
              next_(first) {}

    /// until it is to be tried again; 0: now
    size_t left() const {
        return left_;
    }

    /// n units have passed without it
    void pass(size_t n) {
        left_ -= std::min(left_, n);
    }

    /// whether it is to be tried now; if not, a unit passes
    bool is_due() {
        if (left_ == 0) {
            return true;
        }
        left_--;
        return false;
    }

    /// after it has been tried
    void note(bool pays) {
        left_ = 0;
        if (pays) {
            failures_ = 0;
            next_ = first_;
        } else if (failures_++ >= patience_) {
            left_ = next_;
            next_ = std::min(2 * next_, longest_);
        }
    }

   private:
    size_t first_, longest_, patience_;
    size_t failures_ = 0; ///< in a row
    size_t left_ = 0;
    size_t next_; ///< how long it is left for next
};

} // namespace faiss_turboquant
