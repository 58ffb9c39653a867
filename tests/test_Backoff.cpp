#include <gtest/gtest.h>

#include <faiss_turboquant/Backoff.h>

namespace {

using faiss_turboquant::Backoff;

/// how often it waits before it is due
size_t count_waits(Backoff& backoff) {
    size_t n = 0;
    while (!backoff.is_due()) {
        n++;
    }
    return n;
}

TEST(Backoff, WaitsTwiceAsLongEachTime) {
    Backoff backoff(1, 10);
    EXPECT_EQ(0u, count_waits(backoff));
    for (size_t expected : {1, 2, 4, 8, 10, 10}) {
        backoff.note(false);
        EXPECT_EQ(expected, backoff.left());
        EXPECT_EQ(expected, count_waits(backoff));
    }
    backoff.note(true);
    EXPECT_EQ(0u, count_waits(backoff));
    backoff.note(false);
    EXPECT_EQ(1u, count_waits(backoff));
}

TEST(Backoff, UnitsOfTheCaller) {
    Backoff backoff(100, 1000);
    backoff.note(false);
    backoff.pass(30);
    EXPECT_EQ(70u, backoff.left());
    backoff.pass(500);
    EXPECT_EQ(0u, backoff.left());
    EXPECT_TRUE(backoff.is_due());
    backoff.note(false);
    EXPECT_EQ(200u, backoff.left());
    backoff.note(true);
    EXPECT_EQ(0u, backoff.left());
}

} // namespace
