#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>

#include <faiss/Index.h>
#include <faiss/impl/maybe_owned_vector.h>

#include <faiss_turboquant/io/blocks.h>
#include <faiss_turboquant/io/mapping.h>

namespace faiss_turboquant {

/** Fields of records. Whatever is read is checked; `field` names it in the
 * exception. */

template <class T>
T read_value(BoundedReader& f, const char* field) {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
    T value;
    if (f(&value, sizeof(value), 1) != 1) {
        throw_cut_short(f.name, field);
    }
    return value;
}

[[noreturn]] void throw_bad_value(
        const BoundedReader& f,
        const char* field,
        const std::string& value);

/// an integer from lowest to highest
template <class T>
T read_within(
        BoundedReader& f,
        const char* field,
        int64_t lowest,
        uint64_t highest) {
    const T value = read_value<T>(f, field);
    const bool is_below = std::is_signed_v<T>
            ? static_cast<int64_t>(value) < lowest
            : static_cast<uint64_t>(value) < static_cast<uint64_t>(lowest);
    const bool is_above = value > 0 && static_cast<uint64_t>(value) > highest;
    if (is_below || is_above) {
        throw_bad_value(f, field, std::to_string(value));
    }
    return value;
}

bool read_bool(BoundedReader& f, const char* field);

/** Takes no more memory than the source can fill, or, if its length is not
 * known, than twice what was read.
 * @param items  std::vector or faiss::MaybeOwnedVector of plain values,
 *               resized to n */
template <class Vector>
void read_items(
        BoundedReader& f,
        Vector& items,
        uint64_t n,
        const char* field) {
    const size_t item = sizeof(*items.data());
    const uint64_t left = f.left();
    if (n > left / item) {
        throw_cut_short(f.name, field);
    }
    const uint64_t step = left == unknown_size ? piece_bytes / item : n;
    for (uint64_t done = 0; done < n;) {
        const uint64_t part = std::min(step, n - done);
        items.resize(done + part);
        if (f(items.data() + done, item, part) != part) {
            throw_cut_short(f.name, field);
        }
        done += part;
    }
}

/// a vector whose size the file says
template <class Vector>
void write_vector(faiss::IOWriter& f, const Vector& items) {
    write_value<uint64_t>(f, items.size());
    write_items(f, items);
}

template <class Vector>
void read_vector(BoundedReader& f, Vector& items, const char* field) {
    read_items(f, items, read_value<uint64_t>(f, field), field);
}

template <class T>
void write_array(BlockWriter& f, const faiss::MaybeOwnedVector<T>& items) {
    f.write_array([&](faiss::IOWriter& out) { write_items(out, items); });
}

/** An array of n values.
 * @param is_view  whether to make a view of the source's memory, where there
 *                 is such memory */
template <class T>
void read_array(
        BlockReader& f,
        faiss::MaybeOwnedVector<T>& items,
        uint64_t n,
        const char* field,
        bool is_view = true) {
    ArrayReader array = f.open_array(field);
    if (array.size() % sizeof(T) != 0 || array.size() / sizeof(T) != n) {
        throw_bad_value(
                f,
                (std::string("the size of ") + field).c_str(),
                std::to_string(array.size()));
    }
    void* view = is_view ? array.view(alignof(T)) : nullptr;
    if (view) {
        items = faiss::MaybeOwnedVector<T>::create_view(
                view, n, f.mapped() ? f.mapped()->mapping : nullptr);
        return;
    }
    read_items(array, items, n, field);
    array.finish();
}

/// the fields that every index has
void write_header(faiss::IOWriter& f, const faiss::Index& index);
void read_header(BoundedReader& f, faiss::Index& index);

} // namespace faiss_turboquant
