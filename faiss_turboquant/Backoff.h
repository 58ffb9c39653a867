#pragma once

#include <algorithm>
#include <cstddef>

namespace faiss_turboquant {

/** Of what pays only sometimes, which shows when it is tried: after each time
 * that it has not, it is left for twice as long as before. In whatever unit the
 * caller counts: searches, lists, codes. */
class Backoff {
   public:
    Backoff(size_t first, size_t longest)
            : first_(first), longest_(longest), next_(first) {}

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
        left_ = pays ? 0 : next_;
        next_ = pays ? first_ : std::min(2 * next_, longest_);
    }

   private:
    size_t first_, longest_;
    size_t left_ = 0;
    size_t next_; ///< how long it is left after the next failure
};

} // namespace faiss_turboquant
